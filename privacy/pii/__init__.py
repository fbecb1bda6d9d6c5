"""Personal data: found and replaced by placeholders such as `<EMAIL_ADDRESS>`; and how much of it is found.

`scrubber` puts three kinds of detectors together: patterns with checks (`online`, `numbers`, `streets`, `people`),
lists of names (`names`), and spaCy's small English pipeline, whose doubtful answers a dictionary settles (`model`). All
of it comes from installed packages; nothing asks the network. `check` measures the whole on generated text (`forms`,
`planted`).

This is hygiene and no guarantee: a name that neither the model nor a list nor a pattern knows stays in the text.
"""

from tutelage.privacy.pii.scrubber import Scrubber
from tutelage.privacy.pii.spans import ENTITIES, PLACEHOLDER, Scrubbed, Span, check_entities

__all__ = ["ENTITIES", "PLACEHOLDER", "Scrubbed", "Scrubber", "Span", "check_entities"]
