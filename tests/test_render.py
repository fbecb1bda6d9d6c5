"""The report page, its JSON and the terminal summary: what is shown, what is escaped, what never crashes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_fixture as fixture
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tutelage.configs.records import GateDecision, Metric, RoundReport, RuleOutcome, SiloCounts
from tutelage.flows.render import figure, plain_rule, print_summary, quantity, render_html, render_json, ticks

EMPTY = SiloCounts(silo="silo-0", records=0, prompts=0, drafts=0, malformed=0, dropped={}, replaced={}, released=0)
HTML_VOID = {"meta", "br"}
REPORTS = {
    "one": [fixture.report()],
    "rounds": [fixture.report(1), fixture.refused(2), fixture.report(3)],
    "refused": [fixture.refused()],
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
    return BeautifulSoup(render_html(reports, timings or {}), "html.parser")


def words(page: BeautifulSoup) -> str:
    return " ".join(page.get_text(" ").split())


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS.keys())
def test_page_is_well_formed_and_self_contained(reports: list[RoundReport]) -> None:
    text = render_html(reports, fixture.TIMINGS)
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text
    names = [name for name, _ in balance.attributes]
    assert not {"src", "srcset", "style"} & set(names)
    assert not [name for name in names if name.startswith("on")]
    ids = [value for name, value in balance.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value for name, value in balance.attributes if name in ("href", "aria-labelledby")}
    assert {link.removeprefix("#") for link in links if link} <= set(ids)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS.keys())
def test_page_is_accessible(reports: list[RoundReport]) -> None:
    page = soup(reports, fixture.TIMINGS)
    assert page.html is not None
    assert page.html["lang"] == "en"
    assert len(page.find_all("h1")) == 1
    levels = [int(heading.name[1]) for heading in page.find_all(["h1", "h2", "h3", "h4", "h5"])]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for table in page.find_all("table"):
        assert table.caption is not None
        assert table.caption.get_text(strip=True)
        assert table.find_all("th", scope=True)
    for drawing in page.find_all("svg"):
        hidden = [d for d in (drawing, *drawing.parents) if d.get("aria-hidden") == "true"]
        assert hidden or drawing.get("aria-label") or drawing.find_parent("svg", attrs={"aria-label": True})


def test_sections_come_in_the_order_an_auditor_reads_them() -> None:
    headings = [h.get_text(strip=True) for h in soup(REPORTS["rounds"], fixture.TIMINGS).find_all("h2")]
    assert headings == [
        "What this protects and what it does not",
        "How well the student learned",
        "Training",
        "What the attacks found",
        "From drafts to lessons",
        "The gate",
        "Rounds",
        "Timings",
        "Provenance",
    ]


def test_every_metric_is_shown_with_interval_and_n() -> None:
    report = fixture.report(metrics=(*fixture.metrics(), fixture.around("speed.texts", 12.5, 1.25, 31)))
    text = words(soup([report]))
    for metric in report.metrics:
        shown = figure(report, metric.name)
        assert shown.value is not None
        assert shown.text in text, metric.name
        assert shown.interval in text, metric.name
        assert shown.label in text or metric.name.split(".")[-1] in text or metric.name.split(".")[1] in METHOD_KEYS
    assert "12.5" in text
    assert "11.25 to 13.75" in text
    assert "n = 31" in text


METHOD_KEYS = {"zero_shot", "few_shot", "instruction", "student", "originals", "tfidf"}


def test_shares_intervals_and_chance_are_right() -> None:
    report = fixture.report()
    accuracy = figure(report, "accuracy.zero_shot")
    assert (accuracy.text, accuracy.interval, accuracy.n) == ("55.0%", "46.1 to 63.6%", 120)
    first = figure(report, "canary.rank0_share")
    assert (first.text, first.chance, first.how) == ("0.0%", "1.6%", "95% Clopper-Pearson")
    assert figure(report, "canary.exposure_mean").chance == "1.38 bits"
    longest = figure(report, "overlap.longest_run_max")
    assert (longest.text, longest.interval, longest.internal) == ("9 words", "no interval: a maximum", True)


def test_chart_puts_dots_and_lines_where_the_figures_say() -> None:
    table = soup([fixture.report()]).find("table", class_="dots")
    assert table is not None
    rows = {row.th.get_text(strip=True): row for row in table.tbody.find_all("tr")}
    assert rows["Zero-shot"].circle["cx"] == "55.0%"
    assert rows["Taught student"].circle["cx"] == "80.83%"
    for row in rows.values():
        assert row.find("line", class_="zero")["x1"] == "55.0%"
        assert row.find("line", class_="upper")["x1"] == "93.33%"


@pytest.mark.parametrize("name", ["bare", "refused"])
def test_what_is_missing_is_said_to_be_not_measured(name: str) -> None:
    text = words(soup(REPORTS[name]))
    assert "not measured" in text
    assert "nan" not in text.lower().split()


def test_an_unmeasured_interval_is_not_passed_off_as_none() -> None:
    half = Metric(name="accuracy.student", value=0.8, ci_low=math.nan, ci_high=math.nan, n=1, interval="95% Wilson")
    shown = figure(fixture.report(metrics=(half,)), "accuracy.student")
    assert (shown.text, shown.interval) == ("80.0%", "interval not measured")
    assert shown.low == shown.high == 0.8


def test_refused_round_gives_the_failing_rules_in_plain_words() -> None:
    banner = soup(REPORTS["refused"]).find(class_="verdict")
    assert banner is not None
    text = words(banner)
    assert text.startswith("REFUSED Round 1: 2 of 9 gate rules failed.")
    assert "Accuracy of the taught student (lower end of its interval) must be at least 60.0%. It is 55.3%." in text
    assert "Canary secrets ranked first must be at most 25.0%. It was not measured." in text
    assert "longest run" not in text.lower()


def test_every_draft_is_in_the_bars_and_in_the_table() -> None:
    page = soup([fixture.report()])
    bar = page.find("caption", string="Drafts by fate, per silo").parent.tbody.tr
    released, aside, dropped, malformed = (float(part["width"].rstrip("%")) for part in bar.find_all("rect"))
    silo = fixture.silo(0)
    assert released == pytest.approx(100 * silo.released / silo.drafts, abs=0.01)
    assert aside == pytest.approx(100 * (21 + 52) / silo.drafts, abs=0.01)
    assert dropped == pytest.approx(100 * (6 + 4 + 2) / silo.drafts, abs=0.01)
    assert malformed == pytest.approx(100 * silo.malformed / silo.drafts, abs=0.01)
    table = page.find("caption", string="Screening by silo, counts").parent
    rows = {row.th.get_text(): [int(td.get_text()) for td in row.find_all("td")] for row in table.tbody.find_all("tr")}
    assert rows["Drafts"] == [512, 128, 128, 128, 128]
    assert rows["Not kept"] == [208, 52, 52, 52, 52]
    assert rows["Dropped: common run"] == [30, 6, 7, 8, 9]
    assert rows["Released"] == [122, 32, 31, 30, 29]


def test_no_rule_at_all_is_refused_in_words() -> None:
    assert "no gate rule was applied" in words(soup(REPORTS["bare"]))


@pytest.mark.parametrize(
    ("rule", "threshold", "plain"),
    [
        (
            "accuracy.student - accuracy.zero_shot >= 0.05",
            0.05,
            "Accuracy of the taught student minus accuracy of zero-shot must be at least 5.0 points.",
        ),
        ("macro_f1.tfidf (ci_high) <= 1", 1, "Macro F1 of TF-IDF on lessons (upper end of its interval) must be "),
        ("recall.student.not spam >= 0.5", 0.5, "Recall on class “not spam” of the taught student must be "),
        ("released lessons >= 1", 1, "Released lessons must be at least 1."),
        ("custom.metric <= 3", 3, "Custom.metric must be at most 3."),
        ("anything else", 3, "anything else."),
    ],
)
def test_rules_in_plain_words(rule: str, threshold: float, plain: str) -> None:
    outcome = RuleOutcome(rule=rule, observed=None, threshold=threshold, passed=False, reason="missing")
    assert plain_rule(outcome).startswith(plain)


def test_text_from_models_and_users_is_escaped() -> None:
    evil = "</blockquote><script>alert(1)</script><img src=x onerror=alert(1)> & {{ 7 * 7 }}"
    outcome = RuleOutcome(rule=evil, observed=None, threshold=0.5, passed=False, reason=evil)
    silo = fixture.silo(0).model_copy(update={"silo": evil, "dropped": {evil: 1}, "replaced": {evil: 2}})
    report = fixture.report(
        run_id=evil, recipe_name=evil, protection=evil, instruction=evil, silos=(silo,),
        lessons_per_class={evil: 3}, topics_next={evil: 1.0}, lessons_digest=evil,
        metrics=(fixture.around(f"recall.student.{evil}", 0.5, 0.1, 4), fixture.around(evil, 0.5, 0.1, 4)),
        decision=GateDecision(passed=False, outcomes=(outcome,)),
    )  # fmt: skip
    text = render_html([report], {evil: 1.0})
    page = BeautifulSoup(text, "html.parser")
    assert not page.find_all(["script", "img"])
    assert page.blockquote is not None
    assert page.blockquote.get_text() == evil
    balance = Balance()
    balance.feed(text)
    assert not [name for name, _ in balance.attributes if name.startswith("on")]


def test_internal_figures_are_marked() -> None:
    page = soup([fixture.report()])
    marked = {tag.find_parent(["dt", "th"]).get_text(" ", strip=True) for tag in page.select("dt .tag, th .tag")}
    assert "Longest run shared with a record internal" in marked
    assert "Student on originals (upper line) internal" in marked
    assert len(marked) == 5


def test_same_reports_same_bytes_in_any_order() -> None:
    reports = REPORTS["rounds"]
    assert render_html(reports, fixture.TIMINGS) == render_html(reports[::-1], fixture.TIMINGS)
    assert render_json(reports, {}) == render_json(reports[::-1], {})


def test_json_round_trip() -> None:
    text = render_json(REPORTS["rounds"], fixture.TIMINGS)
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert text == json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert value["schema"] == 1
    assert value["timings_s"] == fixture.TIMINGS
    assert [row["round"] for row in value["reports"]] == [1, 2, 3]
    assert RoundReport.model_validate(value["reports"][0]) == fixture.report(1)
    nan = next(m for m in value["reports"][1]["metrics"] if m["name"] == "canary.rank0_share")
    assert nan["value"] is nan["ci_low"] is None


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS.keys())
def test_summary_fits_80_columns_in_ascii(reports: list[RoundReport]) -> None:
    console = Console(width=80, file=StringIO(), record=True)
    print_summary(reports, Path("runs/demo/release/report.html"), console)
    text = console.export_text()
    assert "Report: runs/demo/release/report.html" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    if reports:
        lines = [line.split("  ")[0] for line in text.splitlines()]
        for label in (
            "Zero-shot",
            "Student on originals (upper line)",
            "TF-IDF on lessons",
            "Mean exposure, planted",
        ):
            assert lines.count(label) == 1


def test_summary_shows_figures_verdicts_and_survives_markup() -> None:
    console = Console(width=80, file=StringIO(), record=True)
    outcome = RuleOutcome(rule="[/red] <= 1", observed=2, threshold=1, passed=False, reason="[bold]")
    refused = fixture.report(2, decision=GateDecision(passed=False, outcomes=(outcome,)))
    print_summary([refused, fixture.report(1)], Path("a/[x]/" + "long" * 30), console)
    text = console.export_text()
    assert "Taught student                         82.5%   74.7 to 88.3%      81.9%   120" in text
    assert "Gate, round 1: PASSED\nGate, round 2: REFUSED\n" in text
    assert "[/red] <= 1" in text
    assert "a/[x]/" + "long" * 30 in text


def test_generation_tasks_are_compared_by_their_own_scores() -> None:
    scores = [
        fixture.around(f"{family}.{method}", 0.4, 0.1, 50)
        for family in ("exact_match", "rouge_l")
        for method in METHOD_KEYS
    ]
    report = fixture.report(metrics=tuple(scores))
    text = words(soup([report]))
    assert "Exact match by method" in text
    assert "ROUGE-L" in text
    assert "Macro F1" not in text
    console = Console(width=80, file=StringIO(), record=True)
    print_summary([report], Path("report.html"), console)
    assert "Exact match" in console.export_text()


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_cover_the_data(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 8
    steps = [after - before for before, after in pairwise(found)]
    assert min(steps) > 0
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)
    slack = 1e-6 * max(1.0, span)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack


@given(st.one_of(st.none(), st.floats()))
def test_any_figure_can_be_written(value: float | None) -> None:
    assert (quantity(value, "share") == "not measured") == (value is None or math.isnan(value))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_browser_shows_the_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(REPORTS["rounds"], fixture.TIMINGS), encoding="utf-8")

    def chromium(*flags: str) -> str:
        command: list[Any] = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    dom = BeautifulSoup(chromium("--dump-dom"), "html.parser")
    assert [h.get_text() for h in dom.find_all("h2")] == [h.get_text() for h in soup(REPORTS["rounds"]).find_all("h2")]

    import matplotlib.image

    for scheme, bright in (("0", False), ("1", True)):  # dark, light
        picture = tmp_path / f"{scheme}.png"
        chromium(
            f"--screenshot={picture}", "--window-size=1100,2600", f"--blink-settings=preferredColorScheme={scheme}"
        )
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.std() > 0.05  # a blank page has none
        assert (pixels.mean() > 0.5) == bright
