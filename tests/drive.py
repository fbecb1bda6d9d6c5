"""Run the command line with a test double as teacher: `python drive.py honest|copying ARGS...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from doubles import CopyingTeacher, HonestTeacher

from tutelage.flows import cli, stages

if __name__ == "__main__":
    teacher = HonestTeacher() if sys.argv.pop(1) == "honest" else CopyingTeacher()
    stages._engine = lambda *_: teacher
    cli.main()
