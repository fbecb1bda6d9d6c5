"""How long the command line takes to answer: importing it, and `tutelage --help`."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.suite import Figure, figure, in_turns

ROUNDS = 7


def measure(full: bool) -> list[Figure]:
    """Whole processes, started one after the other."""
    # where it is set, nothing that is imported is kept compiled
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)

    seconds = in_turns(
        {
            "import": lambda: python("-c", "import tutelage.flows.cli"),
            "help": lambda: python("-m", "tutelage.flows.cli", "--help"),
            "python": lambda: python("-c", ""),
        },
        ROUNDS,
    )
    return [
        figure("`import tutelage.flows.cli`, a process", seconds["import"], " s", at_most=0.5),
        figure("`tutelage --help`", seconds["help"], " s", at_most=0.5),
        figure("an empty Python process, of both", seconds["python"], " s"),
    ]
