"""Figures in words, the JSON report with its schema, and the terminal summary."""

from __future__ import annotations

import json
import math
import re
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import report_fixture as fixture
from hypothesis import given
from hypothesis import strategies as st
from report_page import REPORTS, summary
from rich.console import Console

from tutelage.configs.records import Certificate, GateDecision, Metric, RoundReport, RuleOutcome
from tutelage.flows.report.figures import ceiling, floor
from tutelage.flows.report.render import figure, plain_rule, print_summary, quantity, render_json, ticks
from tutelage.flows.report.schema import report_schema, schema_text


def test_shares_intervals_and_chance_are_right() -> None:
    report = fixture.report()
    accuracy = figure(report, "accuracy.zero_shot")
    assert (accuracy.text, accuracy.interval, accuracy.n) == ("55.0%", "46.1 to 63.6%", 120)
    first = figure(report, "canary.rank0_share")
    assert (first.text, first.chance, first.how) == ("0.0%", "1.6%", "95% Clopper-Pearson")
    assert figure(report, "canary.exposure_mean").chance == "1.38 bits"
    longest = figure(report, "overlap.longest_run_max")
    assert (longest.text, longest.interval, longest.internal) == ("9 words", "no interval: a maximum", True)


def test_an_unmeasured_interval_is_not_passed_off_as_none() -> None:
    half = Metric(name="accuracy.student", value=0.8, ci_low=math.nan, ci_high=math.nan, n=1, interval="95% Wilson")
    shown = figure(fixture.report(metrics=(half,)), "accuracy.student")
    assert (shown.text, shown.interval) == ("80.0%", "interval not measured")
    assert shown.low == shown.high == 0.8


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
def test_json_fits_the_published_schema(reports: list[RoundReport]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(report_schema()).validate(json.loads(render_json(reports, fixture.TIMINGS)))


def test_schema_is_the_published_one() -> None:
    published = Path(__file__).parents[1] / "docs" / "report.schema.json"
    assert published.read_text(encoding="utf-8") == schema_text(), (
        "write it anew: tutelage report --schema > docs/report.schema.json"
    )


def test_schema_describes_fields_and_refuses_what_no_report_holds() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    metric = schema["$defs"]["Metric"]["properties"]
    assert metric["value"]["type"] == ["number", "null"]
    assert metric["n"] == {"description": "How many items it was measured on.", "minimum": 0, "type": "integer"}
    assert "Package -> version" in schema["$defs"]["RoundReport"]["properties"]["versions"]["description"]
    value = json.loads(render_json(REPORTS["attacked"], {}))
    value["reports"][0]["metrics"][0]["text"] = "a record"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(value)


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
    long = RuleOutcome(
        rule="synthetic.auxiliary_of_a_long_name.auc (ci_low) <= 0.55 with n >= 1000", observed=0.46, threshold=0.55,
        passed=True, reason="",
    )  # fmt: skip
    refused = fixture.report(2, decision=GateDecision(passed=False, outcomes=(outcome, long)))
    print_summary([refused, fixture.report(1)], Path("a/[x]/" + "long" * 30), console)
    text = console.export_text()
    assert "Taught student                         82.5%   74.7 to 88.3%      81.9%   120" in text
    assert "Gate, round 1: PASSED\nGate, round 2: REFUSED\n" in text
    assert "[/red] <= 1" in text
    # a long rule goes on in a second line: no figure and no verdict is cut
    assert re.search(r"^synthetic.auxiliary_of_a_long_name.+ passed$", text, re.MULTILINE)
    assert "1000" in text
    assert "a/[x]/" + "long" * 30 in text


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
def test_a_lower_bound_is_never_shown_larger_than_it_is_nor_much_smaller(value: float) -> None:
    assert min(value * 0.9899, value - 1e-320) <= float(floor(value)) <= value


@given(st.floats(0, 1e300))
def test_a_bound_is_never_shown_smaller_than_it_is_nor_much_larger(value: float) -> None:
    assert value <= float(ceiling(value)) <= max(value * 1.0101, 1e-320)


def test_certificates_survive_json() -> None:
    value = json.loads(render_json(REPORTS["formal"], {}))
    made = [Certificate.model_validate(row) for row in value["reports"][0]["certificates"]]
    assert made == list(fixture.formal().certificates)
    broken = fixture.certified({"epsilon": math.inf, "epsilon_ledger": math.nan})
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


def test_summary_has_the_strongest_attack_and_what_the_audit_could_show() -> None:
    text = summary(*REPORTS["attacked"])
    strongest = figure(REPORTS["attacked"][0], "synthetic.ngram.auc")
    assert f"\nStrongest attack: Word pairs on the lessons, AUC {strongest.text} ({strongest.interval})\n" in text
    low, most = (figure(REPORTS["attacked"][0], f"audit.lessons.epsilon_{end}") for end in ("low", "ceiling"))
    assert f"\nAudit, 95%: the lessons ε ≥ {low.text} (of {most.text}), the student ε ≥ 0 (of {most.text})\n" in text
    assert "Strongest attack" not in summary(*REPORTS["one"])
    assert "Audit" not in summary(*REPORTS["one"])


def test_titles_of_attacks_and_audits_stand_in_gate_rules() -> None:
    for rule, plain in (
        (
            "mia.rmia.auc (ci_low) <= 0.6",
            "AUC of RMIA on the student (lower end of its interval) must be at most 0.600.",
        ),
        (
            "synthetic.ngram.tpr_at_1pct <= 0.05",
            "Members found at 1% false alarms by Word pairs on the lessons must be at most 5.0%.",
        ),
        (
            "audit.student.epsilon_low <= 4 with n >= 50",
            "Lower bound of ε measured on the student must be at most 4.00, measured on 50 items or more.",
        ),
        ("pii.recall.PERSON (ci_low) >= 0.9",
         "Recall of the scanner on PERSON (lower end of its interval) must be at least 90.0%."),
        ("extraction.prefix_32 <= 0", "Members continued word for word from 32 tokens must be at most 0.0%."),
    ):  # fmt: skip
        outcome = RuleOutcome(rule=rule, observed=None, threshold=float(rule.split("= ")[1].split()[0]), passed=False,
                              reason="missing")  # fmt: skip
        assert plain_rule(outcome) == plain
