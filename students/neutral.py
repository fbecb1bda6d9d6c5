"""Neutral texts for the forgetting check: plain facts, written for this project, in the public domain."""

from __future__ import annotations

NEUTRAL_TEXTS: tuple[str, ...] = (
    "Water boils at one hundred degrees Celsius at sea level. On a high mountain the air presses less on its "
    "surface, and it boils at a lower temperature, so that food takes longer to cook.",
    "The heart has four chambers. The two upper ones receive the blood that returns from the body and the lungs, "
    "and the two lower ones pump it out again.",
    "A bicycle stays upright more easily when it moves. The rider steers a little towards the side to which it "
    "leans, and this brings the wheels back under the weight.",
    "Bees collect nectar from flowers and carry it to the hive. There it is passed from one bee to another and "
    "dried until it has become honey.",
    "The Moon turns once on its axis in the time it takes to travel once around the Earth. For this reason we "
    "always see the same side of it.",
    "Bread rises because yeast feeds on the sugars in the dough and gives off carbon dioxide. The gas is caught "
    "in the dough as small bubbles, which grow in the heat of the oven.",
    "The printing press with movable type was in use in Europe by the middle of the fifteenth century. It made "
    "books cheaper, and many more people learned to read.",
    "Rivers carry sand and mud from the mountains to the sea. Where the current slows down near the coast, the "
    "load sinks to the bottom and may form a delta.",
    "An acid turns blue litmus paper red, and a base turns red litmus paper blue. When the two are mixed in the "
    "right amounts they neutralise each other.",
    "Cats sleep for much of the day. They are most active at dawn and at dusk, when the small animals that they "
    "hunt are also on the move.",
    "A triangle with sides of three, four and five units has a right angle. The square of the longest side equals "
    "the sum of the squares of the other two.",
    "The Sahara is the largest hot desert in the world. Its days can be very hot, but because the dry air holds "
    "little heat, its nights are often cold.",
    "Glass is made by melting sand together with soda and lime. While it is hot it can be blown, pressed or drawn "
    "into almost any shape.",
    "Most plants take in carbon dioxide through tiny openings in their leaves. With the energy of sunlight they "
    "turn it, together with water, into sugar and oxygen.",
    "A violin has four strings, tuned a fifth apart. The player draws a bow across them and changes the pitch by "
    "pressing the strings against the fingerboard.",
    "The Pacific is the largest of the oceans. It reaches from Asia and Australia in the west to the Americas in "
    "the east, and contains the deepest known trenches.",
    "Iron rusts when it is exposed to water and air. A coat of paint or a thin layer of zinc keeps both away from "
    "the metal and slows the process down.",
    "Sound travels faster in water than in air, and faster still in steel. It can't travel through empty space, "
    "since there is nothing there that could vibrate.",
    "Owls fly almost without a sound. The soft fringes on their feathers break up the flow of the air, so that "
    "their prey does not hear them coming.",
    "A year has about three hundred and sixty-five and a quarter days. To make up for the quarter, nearly every "
    "fourth year has one day more than the others.",
    "Potatoes came to Europe from South America in the sixteenth century. At first they were grown in gardens as "
    "a curiosity, and only later did they become a common food.",
    "The lens of the eye bends light so that an image falls on the retina. From there the optic nerve carries the "
    "signals to the brain.",
    "A lever makes it possible to lift a heavy load with little force. The longer the arm on which one pushes, "
    "the less force is needed, but the farther the hand must move.",
    "Clouds consist of very small drops of water or crystals of ice. When they grow too heavy to float, they fall "
    "as rain, snow or hail.",
    "Chess is played on a board of sixty-four squares. Each side begins with sixteen pieces, and the aim is to "
    "attack the other side's king so that it can't escape.",
    "Salt lowers the freezing point of water. In winter it is spread on roads in many countries so that ice melts "
    "even when the air is a few degrees below zero.",
    "Whales breathe air through openings on the top of their heads. They must come to the surface regularly, "
    "although some kinds can remain below for more than an hour.",
    "The alphabet used for English has twenty-six letters. It goes back, by way of the Romans and the Greeks, to "
    "signs used by Phoenician traders about three thousand years ago.",
    "Cotton grows in the seed pods of a shrub. After the harvest the fibres are separated from the seeds, combed "
    "and spun into thread.",
    "A compass needle points roughly north because the Earth itself acts as a large magnet. The magnetic pole "
    "doesn't lie exactly at the geographic one.",
    "Trees that lose their leaves in autumn draw most of the useful substances back first. The green colour "
    "fades, and the yellow that was there all along becomes visible.",
    "In a library, books on the same subject stand together. A mark on the back of each volume tells where it "
    "belongs, so that anyone can find it and put it back.",
    "Copper conducts electricity very well and is easily drawn into wire. That is why it is used for the cables "
    "in the walls of most houses.",
    "The tides are caused mainly by the pull of the Moon and to a lesser degree by that of the Sun. In most "
    "places the sea rises and falls about twice a day.",
    "Wool keeps people warm because much air is held between its curled fibres. Air that can't move conducts heat "
    "poorly.",
    "A prime number can be divided without remainder only by one and by itself. The first of them are two, three, "
    "five, seven and eleven, and there is no last one.",
    "Volcanoes form where molten rock rises from the depths. The lava cools to dark stone, and after many years "
    "plants grow well on the soil that it leaves.",
    "Penguins can't fly, but they swim very well. Their wings have become stiff flippers, with which they move "
    "through the water as other birds move through the air.",
    "The steam engine turned heat into motion. It first pumped water out of mines and was later used to drive "
    "mills, ships and railways.",
    "Milk turns sour when bacteria change its sugar into acid. The same process, started with chosen bacteria and "
    "kept at an even warmth, gives yoghurt.",
)
