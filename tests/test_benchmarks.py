"""The suite that writes docs/performance.md: what it counts as met, and that one benchmark replaces its lines alone."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.__main__ import BENCHMARKS
from benchmarks.suite import figure, in_turns, ratio


def test_a_target_is_met_by_the_median() -> None:
    fast = ratio("it", [1.0, 2.0, 1.0], [3.0, 2.0, 2.5], at_least=2.0)
    assert (fast.value, fast.low, fast.high) == (2.5, 1.0, 3.0)
    assert fast.met is True
    assert fast.row() == ["it", "≥ 2×", "2.5× (1 to 3)", "met"]
    slow = figure("it", [0.6], " s", at_most=0.5)
    assert slow.row() == ["it", "≤ 0.5 s", "0.6 s", "**MISSED**"]
    assert figure("it", [math.nan], at_most=1.0).met is False
    assert figure("it", [math.nan], at_least=1.0).met is False
    assert figure("it", [12345.6], " MiB").row() == ["it", "", "12,346 MiB", ""]


def test_ways_are_timed_in_turns() -> None:
    order: list[str] = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 7.5}, 2)
    assert order == ["b", "a", "a", "b", "b", "a"], "a round that warms up, then two, every second one backwards"
    assert seconds["b"] == [7.5, 7.5], "it timed itself"
    assert len(seconds["a"]) == 2


def test_one_benchmark_replaces_its_own_lines(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    page.write_text(f"# Speed\n\n{suite.BEGIN}\nold\n{suite.END}\n\nWhy.\n")
    suite.keep("start", [figure("import", [0.4], " s", at_most=0.5)], 3.0, False, results)
    suite.keep("rows", [figure("peak", [900.0], " MiB")], 60.0, True, results)
    suite.keep("start", [figure("import", [0.3], " s", at_most=0.5)], 3.0, False, results)
    suite.write_page(suite.table(suite.load(results), BENCHMARKS), page)
    text = page.read_text()
    assert text.startswith("# Speed\n")
    assert text.endswith("\n\nWhy.\n")
    assert "| `start` | import | ≤ 0.5 s | 0.3 s | met |" in text
    assert "| `rows` | peak |  | 900 MiB |  |" in text
    assert "0.4" not in text
    assert "old" not in text
    assert "`python -m benchmarks rows --full`" in text
    assert "torch " in text
    page.write_text("no place")
    with pytest.raises(ValueError, match="no place"):
        suite.write_page("table", page)


def test_the_page_is_what_the_results_say() -> None:
    table = suite.table(suite.load(), BENCHMARKS)
    assert f"{suite.BEGIN}\n\n{table}\n{suite.END}" in suite.PAGE.read_text()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_asked(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").measure)


def test_an_unknown_name_is_refused() -> None:
    root = Path(suite.__file__).parent.parent
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed"], cwd=root, capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert "no benchmark is called speed; there are decode, vllm" in told.stderr
