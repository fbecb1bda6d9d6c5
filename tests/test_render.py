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

from tutelage.configs.records import Certificate, GateDecision, Metric, RoundReport, RuleOutcome, SiloCounts, Spend
from tutelage.flows.figures import ceiling
from tutelage.flows.guarantee import Guarantee, event_in_words, utility
from tutelage.flows.render import METHODS, figure, plain_rule, print_summary, quantity, render_html, render_json, ticks
from tutelage.privacy.stats import missing_metric, point_metric, share_metric

EMPTY = SiloCounts(silo="silo-0", records=0, prompts=0, drafts=0, malformed=0, dropped={}, replaced={}, released=0)
HTML_VOID = {"meta", "br"}
REPORTS = {
    "one": [fixture.report()],
    "rounds": [fixture.report(1), fixture.refused(2), fixture.report(3)],
    "refused": [fixture.refused()],
    "formal": [fixture.formal()],
    "formal_rounds": [fixture.formal(1, 2), fixture.formal(2, 2)],
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


@pytest.mark.parametrize("made", [fixture.report(), fixture.formal()], ids=["screened", "formal"])
def test_every_metric_is_shown_with_interval_and_n(made: RoundReport) -> None:
    report = made.model_copy(update={"metrics": (*made.metrics, fixture.around("speed.texts", 12.5, 1.25, 31))})
    text = words(soup([report]))
    for metric in report.metrics:
        shown = figure(report, metric.name)
        assert shown.value is not None
        assert shown.text in text, metric.name
        assert shown.interval in text, metric.name
        assert shown.label in text or metric.name.split(".")[-1] in text or metric.name.split(".")[1] in METHODS
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


# ---- formal differential privacy ---------------------------------------------------------------------------------


def summary(*reports: RoundReport) -> str:
    console = Console(width=80, file=StringIO(), record=True)
    print_summary(reports, Path("report.html"), console)
    return console.export_text()


def certified(*changes: dict[str, Any]) -> RoundReport:
    """A formal round with fields of its silos' certificates replaced, silo by silo."""
    made = fixture.formal().certificates
    return fixture.formal(
        certificates=tuple(one.model_copy(update=changes[k] if k < len(changes) else {}) for k, one in enumerate(made))
    )


def with_hits(public: Metric | None, student: Metric | None, unprotected: Metric | None) -> RoundReport:
    return fixture.formal(metrics=tuple(metric for metric in (public, student, unprotected) if metric))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (4.0, "4.00"), (3.9999999976533305, "4.00"), (4.0000001, "4.01"), (1.1, "1.10"), (0.07, "0.0700"),
        (9.991, "10.0"), (12.34, "12.4"), (99.95, "100"), (1234, "1240"), (99_999, "1.00e+05"), (123_456, "1.24e+05"),
        (0.00010681460509658949, "1.07e-04"), (1e-5, "1.00e-05"), (9.999e-5, "1.00e-04"), (0.00999, "0.00999"),
        (math.inf, "∞"), (math.nan, "not measured"),
    ],
)  # fmt: skip
def test_a_bound_is_rounded_up(value: float, shown: str) -> None:
    assert ceiling(value) == shown


@given(st.floats(0, 1e300))
def test_a_bound_is_never_shown_smaller_than_it_is_nor_much_larger(value: float) -> None:
    assert value <= float(ceiling(value)) <= max(value * 1.0101, 1e-320)


def test_guarantee_comes_first_and_only_where_there_is_one() -> None:
    headings = [h.get_text(strip=True) for h in soup(REPORTS["formal"]).find_all("h2")]
    assert headings[:3] == [
        "What this protects and what it does not",
        "Formal guarantee",
        "How well the student learned",
    ]
    for name in ("one", "rounds", "bare"):
        text = words(soup(REPORTS[name]))
        assert "Formal guarantee" not in text
        assert text.count("no formal guarantee") == 1
        assert "ε" not in text
        assert "ε" not in summary(*REPORTS[name])


def test_the_claim_is_that_of_the_worst_silo() -> None:
    report = certified({"epsilon": 1.2, "delta": 2e-6}, {"epsilon": 3.001, "delta": 1e-6, "epsilon_ledger": 6.3})
    page = soup([report.model_copy(update={"certificates": report.certificates[:2], "silos": report.silos[:2]})])
    assert words(page.find(class_="claim")) == (
        "Every lesson of this run was made under (ε, δ)-differential privacy: ε ≤ 3.01, δ = 2.00e-06, unit: record, "
        "adjacency: replace-by-null."
    )
    text = words(page)
    assert "The recipe asks for ε = 4 over all rounds. Together with everything else" in text
    assert "other runs included, it is ε ≤ 6.30." in text
    assert "no formal guarantee" not in text
    assert (
        "An upper bound under this adjacency only; it says nothing about the figures marked internal , which are "
        "computed from private records and stay with the silos."
    ) in text


def test_every_certificate_and_every_spend_is_in_a_table() -> None:
    report = fixture.formal()
    page = soup([report])
    rows = page.find("caption", string="Certificates by silo, rounded up").parent.tbody.find_all("tr")
    assert [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows][2] == [
        "silo-2", "1351", "1.03e-04", "4.00", "4.72", report.certificates[2].ledger[:8],
    ]  # fmt: skip
    rows = page.find("caption", string="Spending by silo").parent.tbody.find_all("tr")
    assert len(rows) == 12
    assert [cell.get_text() for cell in rows[1].find_all(["th", "td"])] == [
        "silo-0", "Teaching", "1", "81", "0.413",
        "sensitivity 0.09141, temperature 0.9, top k 100, max tokens 80, batch units 16, divisor spam 5.4, "
        "clip spam 0.4936, divisor ham 10.6, clip ham 0.969",
    ]  # fmt: skip
    listed = [words(item) for item in page.find(id="r1-guarantee").parent.ul.find_all("li")]
    assert listed[:2] == [
        fixture.INTERNAL,
        "The number of units, 1305, is public: a unit replaced by null leaves its place. (silo-0)",
    ]


def test_an_earlier_round_claims_no_more_than_its_own() -> None:
    page = soup(REPORTS["formal_rounds"])
    last, earlier = (words(claim) for claim in page.find_all(class_="claim"))
    assert last.startswith("Every lesson of this run was made under (ε, δ)-differential privacy: ε ≤ 4.00,")
    assert earlier.startswith("Every lesson up to round 1 was made under (ε, δ)-differential privacy: ε ≤ 2.71,")


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (fixture.formal(certificates=fixture.formal().certificates[1:]), "no certificate for silo-0"),
        (certified({}, {"epsilon": math.inf}), "no finite ε for silo-1"),
        (certified({"epsilon": math.nan}, {"delta": 1.0}), "no finite ε for silo-0, silo-1"),
    ],
    ids=["missing", "infinite", "nan"],
)
def test_without_a_bound_for_every_silo_there_is_no_claim(report: RoundReport, why: str) -> None:
    page = soup([report])
    assert words(page.find(class_="claim")) == f"The lessons of this run have no formal guarantee as a whole: {why}."
    assert "Every lesson of this run" not in words(page)
    assert f"Guarantee: NONE as a whole, {why}; 4 silos" in summary(report)


def test_summary_gives_each_rounds_guarantee_before_its_verdict() -> None:
    assert (
        "Guarantee: ε ≤ 2.71 at δ = 1.07e-04 per record (replace-by-null), 4 silos\nGate, round 1: PASSED\n"
        "Guarantee: ε ≤ 4.00 at δ = 1.07e-04 per record (replace-by-null), 4 silos\nGate, round 2: PASSED\n"
    ) in summary(*REPORTS["formal_rounds"])


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "zcdp", "rho": 0.25}, "ρ = 0.250"),
        ({"event": "gaussian", "noise_multiplier": 5.0}, "Gaussian noise, 5 times the sensitivity"),
        ({"event": "self_composed", "count": 80, "of": {"event": "zcdp", "rho": 0.005}}, "80 × ρ = 0.00500"),
        ({"event": "composed", "of": [{"event": "no_op"}, 3]}, "(looks at nothing private) + unknown"),
        ({"event": "non_private"}, "not private"),
        ({"event": "teleport"}, "unknown, so it counts as not private"),
        ({}, "unknown, so it counts as not private"),
    ],
)
def test_events_in_words(event: dict[str, Any], words: str) -> None:
    assert event_in_words(event) == words


@pytest.mark.parametrize(
    ("event", "rho", "how"),
    [
        ({"event": "zcdp", "rho": 0.25}, "0.250", ""),
        ({"event": "self_composed", "count": 2, "of": {"event": "zcdp", "rho": 0.25}}, "0.500", "2 × ρ = 0.250"),
        ({"event": "gaussian", "noise_multiplier": 1}, "0.500", "Gaussian noise, 1 times the sensitivity"),
        ({"event": "no_op"}, "0", "looks at nothing private"),
        ({"event": "non_private"}, "∞", "not private"),
    ],
)
def test_a_spend_is_given_as_its_cost_and_how_it_comes_about(event: dict[str, Any], rho: str, how: str) -> None:
    spend = Spend(what="vote", round=2, event=event, parts=3, parameters={"max_tokens": 80, "note": "x"})
    guarantee = Guarantee.of(certified({"spends": (spend,)}))
    assert guarantee is not None
    first = guarantee.spends[0]
    assert (first.silo, first.what, first.round, first.parts, first.rho, first.event) == (
        "silo-0",
        "Vote",
        2,
        3,
        rho,
        how,
    )
    assert first.parameters == ("max tokens 80", "note x")


def test_brackets_stand_beside_the_student_in_formal_runs() -> None:
    page = soup(REPORTS["formal"])
    rows = page.find("caption", string="Scores by method").parent.tbody.find_all("tr")
    titles = [words(row.th) for row in rows]
    assert titles[3:6] == [
        "Student at ε = 0 (public only)",
        "Taught student",
        "Student at ε = ∞ (never released) internal",
    ]
    assert "Student at ε = ∞" in words(page.find("table", class_="dots"))
    assert "Nor are those at any ε but 0 and the asked one" in words(page)
    text = summary(*REPORTS["formal"])
    assert "Student at ε = 0 (public only)         61.7%   52.7 to 69.9%      61.1%   120" in text
    assert "Student at ε = ∞ (never released)      86.7%   79.4 to 91.6%      86.1%   120" in text
    assert "at ε" not in words(soup(REPORTS["one"]))
    assert figure(fixture.formal(), "accuracy.epsilon_0").label == "Accuracy of the student at ε = 0 (public only)"
    assert figure(fixture.formal(), "recall.epsilon_inf.ham").label == (
        "Recall on class “ham” of the student at ε = ∞ (never released)"
    )


def test_utility_chart_shows_three_points_whiskers_and_reference_lines() -> None:
    drawing = soup(REPORTS["formal"]).find("svg", class_="eps")
    assert drawing["aria-label"] == "Accuracy against ε: 61.7% at ε = 0, 80.8% at ε = 4, 86.7% at ε = ∞"
    assert [label.get_text() for label in drawing.find_all("text", class_="name")] == ["ε = 0", "ε = 4", "ε = ∞"]
    # the scale reaches from 40% to 100%
    circles = [(c["cx"], float(c["cy"].rstrip("%"))) for c in drawing.find_all("circle")]
    assert [x for x, _ in circles] == ["16.67%", "50.0%", "83.33%"]
    for (_, y), hits in zip(circles, (74, 97, 104), strict=True):
        assert y == pytest.approx((1 - hits / 120) / 0.6 * 100, abs=0.01)
    ends = [float(mark["y"].rstrip("%")) for mark in drawing.find_all("svg", class_="mark")]
    student = fixture.formal().metric("accuracy.student")
    assert student is not None
    assert ends[2:4] == pytest.approx([(1 - end) / 0.6 * 100 for end in (student.ci_low, student.ci_high)], abs=0.01)
    lines = {line["class"][1]: float(line["y1"].rstrip("%")) for line in drawing.select("line.mark")}
    assert lines["zero"] == pytest.approx((1 - 66 / 120) / 0.6 * 100, abs=0.01)
    assert lines["upper"] == pytest.approx((1 - 112 / 120) / 0.6 * 100, abs=0.01)
    caption = words(drawing.parent.figcaption)
    assert "unit: record, adjacency: replace-by-null, δ = 1.07e-04" in caption
    assert "the scale begins at 40%" in caption


def test_no_utility_chart_without_certificates_or_brackets() -> None:
    brackets = tuple(fixture.brackets())
    bare = tuple(metric for metric in fixture.formal().metrics if metric not in brackets)
    lost = tuple(missing_metric(f"accuracy.epsilon_{at}", internal=at == "inf") for at in ("0", "inf"))
    for report in (
        fixture.report(),
        fixture.report(metrics=fixture.formal().metrics),
        fixture.formal(metrics=bare),
        fixture.formal(metrics=(*bare, *lost)),
    ):
        assert utility(report) is None
        assert soup([report]).find("svg", class_="eps") is None
    assert "at ε" not in summary(fixture.formal(metrics=bare))
    assert "Student at ε = ∞ (never released)          -    not measured" in summary(
        fixture.formal(metrics=(*bare, *lost))
    )


@pytest.mark.parametrize(
    ("bracket", "what"), [("epsilon_0", "Over ε = 0 the gain"), ("epsilon_inf", "Against ε = ∞ the loss")]
)
def test_a_bracket_that_is_nan_is_not_measured(bracket: str, what: str) -> None:
    kept = [metric for metric in fixture.formal().metrics if f".{bracket}" not in metric.name]
    lost = [missing_metric(f"accuracy.{bracket}")]
    page = soup([fixture.formal(metrics=(*kept, *lost))])
    row = next(row for row in page.find("caption", string="Scores by method").parent.tbody.find_all("tr")
               if words(row.th).startswith(METHODS[bracket]))  # fmt: skip
    assert row.td.get_text() == "not measured"
    drawing = page.find("svg", class_="eps")
    assert len(drawing.find_all("circle")) == 2
    assert [text.get_text() for text in drawing.find_all("text", class_="missing")] == ["not measured"]
    assert f"{what} was not measured." in words(page)
    assert "nan" not in words(page).lower().split()


def test_a_bracket_that_was_withheld_is_not_shown() -> None:
    kept = tuple(metric for metric in fixture.formal().metrics if ".epsilon_inf" not in metric.name)
    page = soup([fixture.formal(metrics=kept)])
    assert "ε = ∞ (never released)" not in words(page)
    assert "Against ε = ∞" not in words(page)
    labels = page.find("svg", class_="eps").find_all("text", class_="name")
    assert [label.get_text() for label in labels] == ["ε = 0", "ε = 4"]


def test_more_brackets_stand_in_the_order_of_epsilon() -> None:
    more = tuple(share_metric(f"accuracy.epsilon_{e}", k, 120, internal=True) for e, k in (("10", 99), ("0_5", 77)))
    report = fixture.formal(metrics=(*fixture.formal().metrics, *more))
    page = soup([report])
    labels = page.find("svg", class_="eps").find_all("text", class_="name")
    assert [label.get_text() for label in labels] == ["ε = 0", "ε = 0.5", "ε = 4", "ε = 10", "ε = ∞"]
    titles = [words(row.th) for row in page.find("caption", string="Scores by method").parent.tbody.find_all("tr")]
    assert titles[3:8] == [
        "Student at ε = 0 (public only)", "Taught student", "Student at ε = 0.5 (never released) internal",
        "Student at ε = 10 (never released) internal", "Student at ε = ∞ (never released) internal",
    ]  # fmt: skip
    assert "Student at ε = 10 (never released)" in summary(report)


def test_reference_lines_only_where_measured() -> None:
    kept = tuple(m for m in fixture.formal().metrics if m.name not in ("accuracy.zero_shot", "accuracy.originals"))
    drawing = soup([fixture.formal(metrics=kept)]).find("svg", class_="eps")
    assert not drawing.select("line.mark")
    assert drawing.parent.find(class_="legend") is None


@pytest.mark.parametrize(
    ("public", "student", "unprotected", "gain", "loss"),
    [
        (
            share_metric("accuracy.epsilon_0", 50, 100), share_metric("accuracy.student", 80, 100),
            share_metric("accuracy.epsilon_inf", 83, 100, internal=True),
            "Over ε = 0 the gain is 30.0 percentage points (80.0% against 50.0%); the intervals do not overlap.",
            "Against ε = ∞ the loss is 3.0 percentage points (80.0% against 83.0%); the intervals overlap: this run "
            "alone can't tell them apart.",
        ),
        (
            share_metric("accuracy.epsilon_0", 82, 100), share_metric("accuracy.student", 80, 100),
            share_metric("accuracy.epsilon_inf", 50, 100, internal=True),
            "Over ε = 0 there is no gain but a loss of 2.0 percentage points (80.0% against 82.0%); the intervals "
            "overlap: this run alone can't tell them apart.",
            "Against ε = ∞ there is no loss but a gain of 30.0 percentage points (80.0% against 50.0%); the intervals "
            "do not overlap.",
        ),
        (
            share_metric("accuracy.epsilon_0", 80, 100), share_metric("accuracy.student", 80, 100),
            point_metric("accuracy.epsilon_inf", 0.9, 1, "a single value", internal=True),
            "Over ε = 0 there is no gain: both have 80.0%; the intervals overlap: this run alone can't tell them "
            "apart.",
            "Against ε = ∞ the loss is 10.0 percentage points (80.0% against 90.0%); without an interval for both, "
            "nothing says how much of that is chance.",
        ),
        (
            share_metric("accuracy.epsilon_0", 80, 100), None, missing_metric("accuracy.epsilon_inf"),
            "Over ε = 0 the gain was not measured.", "Against ε = ∞ the loss was not measured.",
        ),
        (
            share_metric("exact_match.epsilon_0", 1, 100), share_metric("exact_match.student", 2, 100),
            share_metric("exact_match.epsilon_inf", 40, 100, internal=True),
            "Over ε = 0 the gain is 1.0 percentage points (2.0% against 1.0%); the intervals overlap: this run alone "
            "can't tell them apart.",
            "Against ε = ∞ the loss is 38.0 percentage points (2.0% against 40.0%); the intervals do not overlap.",
        ),
    ],
    ids=["as hoped", "the other way", "level", "no student", "generation"],
)  # fmt: skip
def test_what_the_guarantee_cost_in_words(
    public: Metric | None, student: Metric | None, unprotected: Metric | None, gain: str, loss: str
) -> None:
    report = with_hits(public, student, unprotected)
    found = utility(report)
    assert found is not None
    assert found.sentences == (gain, loss)
    assert 0 <= found.scale[0] < found.scale[-1] <= 1
    assert f"{gain} {loss}" in words(soup([report]))


def test_claimed_epsilon_is_shown_and_rounded_up() -> None:
    claimed = point_metric("epsilon.claimed", 4.0000001, 4, "an upper bound")
    report = fixture.formal(metrics=(*fixture.metrics(), claimed))
    assert "ε claimed, the worst silo 4.01" in words(soup([report]))
    outcome = RuleOutcome(
        rule="epsilon.claimed <= 4", observed=4.0000001, threshold=4.0, passed=False, reason="too high"
    )
    refused = fixture.formal(decision=GateDecision(passed=False, outcomes=(outcome,)))
    assert "ε claimed, the worst silo must be at most 4.00. It is 4.01." in words(soup([refused]))


def test_text_in_certificates_is_escaped() -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(1)> & {{ 7 * 7 }} ε = <b>"
    spend = Spend(what="teach", round=1, event={"event": evil, evil: evil}, parts=1, parameters={evil: evil})
    one = fixture.certificate(0).model_copy(
        update={"silo": evil, "adjacency": evil, "ledger": "<script>", "not_charged": (evil,), "spends": (spend,)}
    )
    silo = fixture.silo(0).model_copy(update={"silo": evil})
    report = fixture.formal(certificates=(one, fixture.certificate(1)), silos=(silo, fixture.silo(1), fixture.silo(2)))
    for made in (report, report.model_copy(update={"silos": (silo, fixture.silo(1))})):
        text = render_html([made], {})
        page = BeautifulSoup(text, "html.parser")
        assert not page.find_all(["script", "img"])
        assert evil in page.find("caption", string="Certificates by silo, rounded up").parent.get_text()
        balance = Balance()
        balance.feed(text)
        assert balance.open == []
        assert not [name for name, _ in balance.attributes if name.startswith("on")]
        assert summary(made)


def test_certificates_survive_json() -> None:
    value = json.loads(render_json(REPORTS["formal"], {}))
    made = [Certificate.model_validate(row) for row in value["reports"][0]["certificates"]]
    assert made == list(fixture.formal().certificates)
    broken = certified({"epsilon": math.inf, "epsilon_ledger": math.nan})
    text = render_json([broken], {})
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["reports"][0]
    assert row["certificates"][0]["epsilon"] is row["certificates"][0]["epsilon_ledger"] is None


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_cover_the_data(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 8
    steps = [after - before for before, after in pairwise(found)]
    assert min(steps) > 0
    # beside a large number a small step is only as even as floating point allows
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=4 * math.ulp(low + span))
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
