"""What is installed is the whole of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("room", ["configs", "privacy", "teachers", "students", "flows"])
def test_every_package_is_installed(room: str) -> None:
    """One that is left out is there in a checkout, and missing for everybody else."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT) for path in (ROOT / room).rglob("__init__.py")}
    assert {f"tutelage.{'.'.join(path.parts)}" for path in found} <= set(listed)
