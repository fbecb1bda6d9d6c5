"""What a report says of formal differential privacy, and what it cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import report_fixture as fixture
from bs4 import BeautifulSoup
from report_page import REPORTS, Balance, soup, summary, table, words

from tutelage.configs.records import GateDecision, Metric, RoundReport, RuleOutcome, Spend
from tutelage.flows.report.guarantee import Guarantee, event_in_words, utility
from tutelage.flows.report.render import METHODS, figure, render_html
from tutelage.privacy.stats import missing_metric, point_metric, share_metric


def with_hits(public: Metric | None, student: Metric | None, unprotected: Metric | None) -> RoundReport:
    return fixture.formal(metrics=tuple(metric for metric in (public, student, unprotected) if metric))


def test_guarantee_comes_first_and_only_where_there_is_one() -> None:
    headings = [h.get_text(strip=True) for h in soup(REPORTS["formal"]).find_all("h2")]
    assert headings[:3] == [
        "What this protects and what it does not",
        "ε: what is claimed, what was measured",
        "What the attacks found",
    ]
    assert "The ledger" in headings
    for name in ("one", "rounds", "bare"):
        text = words(soup(REPORTS[name]))
        assert "differential privacy" not in text
        assert "The ledger" not in text
        assert "no formal guarantee" in text
        assert "ε ≤" not in text
        assert "ε" not in summary(*REPORTS[name])


def test_the_claim_is_that_of_the_worst_silo() -> None:
    report = fixture.certified(
        {"epsilon": 1.2, "delta": 2e-6}, {"epsilon": 3.001, "delta": 1e-6, "epsilon_ledger": 6.3}
    )
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
    listed = [words(item) for item in page.find(id="r1-ledger").parent.ul.find_all("li")]
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
        (fixture.certified({}, {"epsilon": math.inf}), "no finite ε for silo-1"),
        (fixture.certified({"epsilon": math.nan}, {"delta": 1.0}), "no finite ε for silo-0, silo-1"),
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
    guarantee = Guarantee.of(fixture.certified({"spends": (spend,)}))
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
    dots = next(one for one in page.find_all("table", class_="dots") if words(one.caption) == "Accuracy by method")
    assert "Student at ε = ∞" in words(dots)
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
    assert ["≤ 4.01", "4 silos"] in [row[1:] for row in table(soup([report]), "Bounds on ε")]
    assert "ε claimed ≤ 4.01" in words(soup([report]))
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
