"""Rendered reports, and ways to read them, for the tests of the report."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import report_fixture as fixture
from bs4 import BeautifulSoup
from rich.console import Console

from tutelage.configs.records import GateDecision, RoundReport, SiloCounts
from tutelage.flows.report.render import print_summary, render_html
from tutelage.students.publish import public_report

EMPTY = SiloCounts(silo="silo-0", records=0, prompts=0, drafts=0, malformed=0, dropped={}, replaced={}, released=0)
HTML_VOID = {"meta", "br"}
REPORTS = {
    "one": [fixture.report()],
    "rounds": [fixture.report(1), fixture.refused(2), fixture.report(3)],
    "refused": [fixture.refused()],
    "formal": [fixture.formal()],
    "formal_rounds": [fixture.formal(1, 2), fixture.formal(2, 2)],
    "attacked": [fixture.attacked(fixture.formal())],
    "leaky": [fixture.attacked(fixture.report(), leak=2.5, audit=3.0)],
    "public": [public_report(fixture.attacked(fixture.formal()))],
    "overridden": [fixture.attacked(fixture.refused(), override=fixture.OVERRIDE)],
    "bare": [
        fixture.report(
            metrics=(), curve=(), silos=(EMPTY,), lessons_per_class={}, topics_next={}, instruction="",
            decision=GateDecision(passed=False, outcomes=()),
        )
    ],
    "none": [],
}  # fmt: skip


class Balance(HTMLParser):
    """Fails on a tag that is closed out of turn, and keeps every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in HTML_VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of turn at {self.getpos()}"


def soup(reports: list[RoundReport], timings: dict[str, float] | None = None) -> BeautifulSoup:
    """The page of some reports; shared by tests, so not to be changed."""
    return _parsed(render_html(reports, timings or {}))


@cache
def _parsed(page: str) -> BeautifulSoup:
    return BeautifulSoup(page, "html.parser")


def words(page: BeautifulSoup) -> str:
    """What a page or a part of it says, with single spaces."""
    return " ".join(page.get_text(" ").split())


def table(page: BeautifulSoup, caption: str) -> list[list[str]]:
    """The body of the first table of that caption, cell by cell."""
    found = next(one for one in page.find_all("caption") if words(one) == caption)
    return [[words(cell) for cell in row.find_all(["th", "td"])] for row in found.parent.tbody.find_all("tr")]


def summary(*reports: RoundReport) -> str:
    """The terminal's summary, 80 columns wide."""
    console = Console(width=80, file=StringIO(), record=True)
    print_summary(reports, Path("report.html"), console)
    return console.export_text()
