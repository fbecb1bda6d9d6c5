"""What a report says of leaks: ROC curves, ε on one axis, and what is not shown."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import report_fixture as fixture
from hypothesis import given
from hypothesis import strategies as st
from report_page import REPORTS, soup, summary, table, words

from tutelage.configs.records import Curve, Metric, RoundReport
from tutelage.flows.report.attacks_view import Attacks, chance_band, draw, guessing_auc
from tutelage.flows.report.epsilon import Epsilon
from tutelage.flows.report.limits import limits
from tutelage.flows.report.render import figure
from tutelage.privacy.attacks.base import Settings
from tutelage.privacy.attacks.membership import judge, roc
from tutelage.privacy.stats import missing_metric, share_metric
from tutelage.students.publish import public_report

ATTACKED, SCREENED, FORMAL = (REPORTS[name][0] for name in ("attacked", "one", "formal"))


def corners(path: str) -> list[tuple[float, float]]:
    """The corners of an SVG path of straight lines."""
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path)]


def curve(fpr: list[float], tpr: list[float], members: int = 100, nonmembers: int = 100) -> Curve:
    return Curve(name="mia.loss", fpr=tuple(fpr), tpr=tuple(tpr), members=members, nonmembers=nonmembers)


def audited(claimed: float | None, lessons: float = 0.5, ceiling: float = 2.9) -> RoundReport:
    """A round whose audit measured so much on its lessons, and nothing on its student; None: screened."""
    figures = [
        Metric(name="audit.lessons.epsilon_low", value=lessons, ci_low=lessons, ci_high=math.inf, n=100),
        Metric(name="audit.lessons.epsilon_ceiling", value=ceiling, ci_low=ceiling, ci_high=ceiling, n=100),
        missing_metric("audit.student.epsilon_low"),
    ]
    if claimed is None:
        return SCREENED.model_copy(update={"metrics": (*SCREENED.metrics, *figures)})
    certificates = tuple(one.model_copy(update={"epsilon": claimed}) for one in FORMAL.certificates)
    kept = (metric for metric in FORMAL.metrics if metric.name != "epsilon.claimed")
    return FORMAL.model_copy(update={"certificates": certificates, "metrics": (*kept, *figures)})


# ---- curves ------------------------------------------------------------------------------------------------------


def test_a_curve_is_drawn_on_logarithmic_axes_as_steps() -> None:
    drawn = draw(curve([0.0, 0.01, 0.1, 1.0], [0.02, 0.1, 0.5, 1.0]), -2)
    assert drawn is not None
    # at 1% the point is on the left edge; between two points the left one's share holds
    assert corners(drawn.path) == [
        (0, 50), (50, 50), (50, pytest.approx(15.1, abs=0.05)), (100, pytest.approx(15.1, abs=0.05)), (100, 0),
    ]  # fmt: skip
    assert drawn.found == ("2.0%", "–", "10.0%", "10.0%", "50.0%", "50.0%", "50.0%")
    assert drawn.in_words.endswith(
        "members found 2.0% at no false alarms, 10.0% at 1% false alarms, 10.0% at 5% false alarms, "
        "50.0% at 10% false alarms, 50.0% at 25% false alarms, 50.0% at 50% false alarms"
    )
    guessing = draw(curve([0.0, 0.1, 1.0], [0.0, 0.1, 1.0], 1000, 1000), -3)
    assert guessing is not None
    assert (pytest.approx(66.7), pytest.approx(33.3)) in corners(guessing.path)


def test_what_cannot_be_resolved_is_marked() -> None:
    few = draw(curve([0.0, 1.0], [0.5, 1.0], 20, 20), -2)
    assert few is not None
    assert few.unresolved == pytest.approx(100 * (1 + math.log10(1 / 20) / 2), abs=0.05)
    assert few.found[1:3] == ("–", "–")
    enough = draw(curve([0.0, 1.0], [0.5, 1.0], 100, 100), -2)
    assert enough is not None
    assert enough.unresolved == 0


@pytest.mark.parametrize("broken", [curve([], []), curve([0, 1], [0, 1], 0, 5), curve([math.nan], [math.nan])])
def test_a_curve_without_points_is_not_drawn(broken: Curve) -> None:
    assert draw(broken, -2) is None
    page = soup([fixture.report(roc=(broken,))])
    assert page.find("svg", class_="roc") is None
    assert "No ROC curve was recorded." in words(page)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(-4, -1), st.integers(0, 2**32 - 1))
def test_any_curve_rises_inside_its_square(members: int, nonmembers: int, floor: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, members + nonmembers)  # with ties
    drawn = draw(roc("x", scores[:members], scores[members:], internal=True), floor)
    assert drawn is not None
    for path in (drawn.path, drawn.band):
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in corners(path))
    points = corners(drawn.path)
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert points[0][0] == 0
    assert points[-1][0] == 100


def test_the_band_holds_what_guessing_finds() -> None:
    members, nonmembers, rng = 30, 40, np.random.default_rng(0)
    low, high = (dict(ends) for ends in chance_band(members, nonmembers))
    runs, inside = 4000, dict.fromkeys(low, 0)
    for _ in range(runs):
        scores = rng.random(members + nonmembers)
        others = np.sort(scores[members:])[::-1]
        for k in low:
            share = (scores[:members] > others[k]).mean() if k < nonmembers else 1.0
            inside[k] += low[k] <= share <= high[k]
    # 4 standard errors below 95%; the discrete distribution makes it more than that
    assert min(inside.values()) / runs > 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)
    assert min(inside.values()) / runs < 0.985


def test_the_spread_of_a_guessing_auc() -> None:
    rng, low_high = np.random.default_rng(1), guessing_auc(60, 50)
    areas = [(rng.random((60, 1)) > rng.random((1, 50))).mean() for _ in range(3000)]
    assert np.quantile(areas, [0.025, 0.975]) == pytest.approx(low_high, abs=0.012)


# ---- the page ----------------------------------------------------------------------------------------------------


def test_every_attack_has_a_card_with_its_figures_and_its_curve() -> None:
    page = soup([ATTACKED])
    cards = {words(card.figcaption.b): card for card in page.find_all("figure", class_="attack")}
    assert len(cards) == len(fixture.SEPARATION) == len(ATTACKED.roc)
    said = words(cards["Word pairs"])
    auc, found = (figure(ATTACKED, f"synthetic.ngram.{measure}") for measure in ("auc", "tpr_at_1pct"))
    assert f"AUC guessing: 0.500 {auc.text} {auc.interval}" in said
    assert f"Found at 1% false alarms guessing: 2.0% {found.text} {found.interval}" in said
    assert "Found at 0.1% false alarms : not measured needs 1000 non-members, there are 100" in said
    assert "100 members, 100 non-members" in said
    assert "better than guessing" in said
    assert "better than guessing" not in words(cards["Loss"])
    assert "100 members, 50 non-members" in words(cards["RMIA"])
    for card in cards.values():
        assert card.find("svg", class_="roc")["aria-label"].startswith("ROC curve, ")
        assert card.find("path", class_="curve")["d"].startswith("M0 ")
    rows = table(page, "Members found, by share of false alarms")
    assert [row[0] for row in rows] == [attack.on_what for attack in Attacks.of(ATTACKED).every]
    assert rows[0][1:] == list(Attacks.of(ATTACKED).every[0].roc.found)  # type: ignore[union-attr]


def test_what_the_attacks_found_is_said_first() -> None:
    text = words(soup([ATTACKED]))
    told = [one.on_what for one in Attacks.of(ATTACKED).every if one.tells]
    assert (
        f"{len(told)} of 9 attacks told members from non-members better than guessing (the AUC's interval lies "
        f"wholly above 0.5): {'; '.join(told)}."
    ) in text
    assert "guessing gives an AUC between 0.42 and 0.58 in 95% of runs" in text
    assert "a rate of false alarms below 1 in 100 cannot be told from none" in text
    quiet = fixture.attacked(fixture.report(), leak=0.0)
    assert not [one for one in Attacks.of(quiet).every if one.tells]
    assert "None of 9 attacks told members from non-members" in words(soup([quiet]))
    assert "better than guessing</span>" not in str(soup([quiet]))
    assert "Telling members from non-members was not measured." in words(soup(REPORTS["one"]))


def test_axes_reach_to_one_text_in_all() -> None:
    def decades(members: int, nonmembers: int) -> tuple[int, ...]:
        found = judge("mia.loss", np.arange(members), np.arange(nonmembers) + 0.5, Settings(100), internal=True)
        return Attacks.of(fixture.report(metrics=found.metrics, roc=found.curves)).decades

    assert decades(20, 30) == (-2, -1, 0)
    assert decades(100, 100) == (-2, -1, 0)
    assert decades(101, 150) == (-3, -2, -1, 0)
    assert decades(1000, 1000) == (-3, -2, -1, 0)
    assert decades(5000, 5001) == (-4, -3, -2, -1, 0)


def test_the_version_to_pass_on_has_no_curve_and_says_where_they_are() -> None:
    public = REPORTS["public"][0]
    page = soup([public])
    assert page.find("svg", class_="roc") is None
    assert not page.find_all("figure", class_="attack")
    text = words(page)
    assert "These figures and curves stay with the silos; this is the version to pass on." in text
    assert "Texts continued word for word" not in text
    assert "Computed from private records, so it is not in this version: it stays with the silos." in text
    # what was found of canaries is there
    assert "Canary secrets ranked first 0.0%" in text
    assert "Measured on the lessons" in text
    assert "Canary secrets verbatim in the instruction 0" in text
    for metric in ATTACKED.metrics:
        if metric.internal and metric.name.startswith(("mia.", "synthetic.", "extraction.")):
            assert figure(ATTACKED, metric.name).interval not in text or math.isnan(metric.value), metric.name


def test_unknown_attacks_and_figures_are_shown_too() -> None:
    found = judge("mia.newest", np.arange(120) + 9.5, np.arange(120), Settings(100), internal=True)
    other = judge("graph.walk", np.arange(120) + 9.5, np.arange(120), Settings(100), internal=False)
    lone = fixture.around("strange.figure", 0.25, 0.125, 7)
    report = fixture.report(
        metrics=(*fixture.metrics(), *found.metrics, *other.metrics, lone), roc=(*found.curves, *other.curves)
    )
    page = soup([report])
    assert {words(card.figcaption.b) for card in page.find_all("figure", class_="attack")} == {
        "mia.newest",
        "graph.walk",
    }
    assert "Other attacks" in words(page)
    assert "Strange.figure 0.25 0.125 to 0.375" in words(page)
    assert "Further figures" in words(page)


def test_attacks_survive_missing_figures() -> None:
    missing = tuple(missing_metric(m.name, internal=m.internal) for m in ATTACKED.metrics)
    for report in (
        ATTACKED.model_copy(update={"metrics": missing}),
        ATTACKED.model_copy(update={"metrics": missing, "roc": ()}),
        ATTACKED.model_copy(update={"metrics": ()}),
        ATTACKED.model_copy(update={"roc": ()}),
    ):
        text = words(soup([report]))
        assert "nan" not in re.findall(r"\w+", text.lower())
        assert "Telling the silos' records from others" in text
        assert max(map(len, summary(report).splitlines())) <= 80


def test_extraction_stands_beside_what_non_members_give() -> None:
    rows = table(soup([ATTACKED]), "Texts continued word for word, by the tokens shown")
    assert [row[0] for row in rows] == ["16 tokens internal", "32 tokens internal", "64 tokens internal"]
    inside, outside = (figure(ATTACKED, f"extraction.prefix_64{side}") for side in ("", "_out"))
    assert rows[2][1:] == [f"{one.text} {one.interval} · n = 77" for one in (inside, outside)]
    alone = fixture.report(metrics=(*fixture.metrics(), share_metric("extraction.prefix_8", 0, 9, internal=True)))
    assert table(soup([alone]), "Texts continued word for word, by the tokens shown")[0][2] == "not measured"


def test_text_in_attacks_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    found = judge(evil, np.arange(120) + 9.5, np.arange(120), Settings(100), internal=True)
    planted = [share_metric(name, 1, 2) for name in (f"pii.recall.{evil}", "mia.<b>.auc", "extraction.prefix_16")]
    versions = {evil: "<img src=x>"}
    page = soup([fixture.report(metrics=(*found.metrics, *planted), roc=found.curves, versions=versions)])
    assert not page.find_all(["script", "img"])
    assert evil in page.get_text()


# ---- ε on one axis -----------------------------------------------------------------------------------------------


def test_bounds_stand_where_the_axis_says() -> None:
    drawing = soup([audited(4.0)]).find("svg", class_="axis")
    assert drawing["aria-label"] == (
        "ε on one axis: claimed ε ≤ 4.00; measured on the lessons ε ≥ 0.500 of at most 2.90; "
        "not measured on the student"
    )
    assert [one.get_text() for one in drawing.find_all("text", class_="x")] == ["0", "1", "2", "3", "4", "5"]
    assert drawing.select_one(".claimed line.bar")["x2"] == "80.0%"
    bar = drawing.select_one(".audited line.bar")
    assert (bar["x1"], bar["x2"]) == ("10.0%", "58.0%")
    zone = drawing.find("rect", class_="zone")
    assert (zone["x"], zone["width"]) == ("10.0%", "70.0%")
    assert [words(text) for text in drawing.find_all("text", class_="name")] == [
        "Claimed: ε ≤ 4.00", "On the lessons: ε ≥ 0.500 , could show 2.90", "On the student: not measured",
    ]  # fmt: skip


def test_bounds_are_in_a_table_and_in_words() -> None:
    page = soup([audited(4.0)])
    rows = table(page, "Bounds on ε")
    assert rows[0] == ["Claimed, the worst silo by certificates; δ = 1.07e-04, per record, replace-by-null",
                       "≤ 4.00", "4 silos"]  # fmt: skip
    assert [row[1] for row in rows[1:]] == ["≥ 0.500", "2.90", "not measured"]
    assert rows[1][2] == "100 canaries"
    text = words(page)
    assert "The audit of the lessons shows ε ≥ 0.500 with 95% confidence; with 100 canaries it could have shown" in text
    assert "On the student ε was not measured." in text
    assert "The claim lies above the most that the audit could show" in text
    assert "The claim lies above" not in words(soup([audited(2.5)]))
    nothing = words(soup([audited(2.5, lessons=0.0)]))
    assert "The audit of the lessons shows nothing, that is ε ≥ 0; with 100 canaries" in nothing


def test_more_measured_than_claimed_is_said_aloud() -> None:
    report = audited(1.0, lessons=1.5)
    page = soup([report])
    text = words(page)
    assert "More was measured than is claimed: ε ≥ 1.50 against ε ≤ 1.00. The code or the claim is wrong;" in text
    assert (
        "With 95% confidence the code does not do what was certified, or the claim is wrong: do not rely on it." in text
    )
    assert page.find("svg", class_="axis").find("rect", class_="clash")["x"] == "33.33%"
    assert "ε measured ≥ 1.50 more than is claimed" in text
    assert "The audit measured more than is claimed: the code or the claim is wrong." in summary(report)
    for quiet in (audited(1.5, lessons=1.5), audited(None, lessons=1.5)):
        assert "More was measured" not in words(soup([quiet]))
        assert soup([quiet]).find("rect", class_="clash") is None


def test_without_certificates_nothing_bounds_from_above() -> None:
    page = soup([audited(None)])
    assert "Nothing bounds ε from above: the lessons were screened only." in words(page)
    drawing = page.find("svg", class_="axis")
    assert "no upper bound" in words(drawing)
    assert drawing.select_one(".claimed path") is None
    assert drawing.find("rect", class_="zone")["width"] == "83.33%"  # open to the right
    bare = soup(REPORTS["one"])
    assert bare.find("svg", class_="axis") is None
    assert "Nothing bounds ε from above" in words(bare)
    some = fixture.formal(certificates=fixture.formal().certificates[1:])
    assert "Nothing bounds ε from above for all silos: no certificate for silo-0." in words(soup([some]))
    assert Epsilon.of(some).claimed is None


def test_a_claim_far_above_all_else_is_put_off_the_scale() -> None:
    far = soup([audited(60.0)]).find("svg", class_="axis")
    assert "Claimed: ε ≤ 60.0, right of this scale" in words(far)
    assert far.find_all("text", class_="x")[-1].get_text() == "3"
    assert far.select_one(".claimed line.bar")["x2"].startswith("100")
    alone = fixture.formal()
    assert soup([alone]).find("svg", class_="axis") is not None
    assert "4.00" in words(soup([alone]).find("svg", class_="axis"))


@given(st.one_of(st.none(), st.floats(0, 1e4)), st.floats(0, 50), st.one_of(st.just(math.nan), st.floats(0, 50)))
def test_any_bounds_can_be_drawn(claimed: float | None, low: float, ceiling: float) -> None:
    epsilon = Epsilon.of(audited(claimed, low, ceiling))
    assert epsilon.scale[0] == 0
    assert epsilon.scale[-1] >= low
    assert epsilon.off_scale == (claimed is not None and claimed > epsilon.scale[-1])
    assert bool(epsilon.broken) == (claimed is not None and low > claimed)
    assert list(epsilon.sentences)
    assert "nan" not in epsilon.in_words


def test_the_audits_own_figures_are_read_as_bounds() -> None:
    shown = figure(ATTACKED, "audit.lessons.epsilon_low")
    assert shown.value is not None
    assert shown.interval == f"{shown.text} or more"
    assert float(shown.text) <= shown.value


# ---- what is not shown -------------------------------------------------------------------------------------------


def unsaid(report: RoundReport, rounds: int = 1) -> dict[str, str]:
    return {limit.what: limit.why for limit in limits(report, rounds)}


def test_limits_depend_on_what_is_there() -> None:
    screened, formal, public = unsaid(REPORTS["one"][0]), unsaid(ATTACKED), unsaid(REPORTS["public"][0])
    assert "There is no formal guarantee" in screened["That a lesson gives nothing away."]
    assert "That a lesson gives nothing away." not in formal
    assert "replace-by-null" in formal["That nothing at all is learned about a record."]
    assert "That the code ran as certified." in formal
    assert "That the code ran as certified." not in screened
    for said in (screened, formal, public):
        assert "lower bound" in said["What other attackers could do."]
        assert "test set of 120 texts" in said["How the student does elsewhere."]
        assert "tutelage audit verify RUN" in said["That its own figures are right."]
    assert "An audit" not in screened
    assert screened["How large ε is at least."] == "ε was not measured by an audit."
    ceiling = figure(ATTACKED, "audit.lessons.epsilon_ceiling").text
    assert formal[f"An ε above {ceiling}, were there one."].startswith("100 canaries cannot show more")
    weak = "Weak leaks, and leaks of a few records."
    assert "100 members and 100 non-members an AUC below 0.58 looks like guessing" in formal[weak]
    assert weak not in public
    assert "stay with the silos" in public["What was found about real records."]
    assert "That this page may be passed on." in formal
    assert "That this page may be passed on." not in public
    assert "was not measured" in screened["What screening missed."]
    assert "generated text" in formal["What screening missed."]
    assert "That the test was unseen." in screened
    assert "That the test was unseen." not in formal
    assert "silos' records" in public["That the test was unseen."]
    assert "one seed (17)" in formal["What another run would give."]
    assert "5 planted secrets" in screened["Rare leaks of secrets."]
    assert "one bit about the records that no ε covers" in formal["Figures that give nothing away themselves."]


def test_what_could_not_be_measured_is_listed() -> None:
    said = unsaid(ATTACKED)["What could not be measured."]
    assert said == (
        "Members found at 0.1% false alarms by 9 attacks; Members found at 1% false alarms by RMIA on the student."
    )
    many = tuple(missing_metric(f"strange.figure{k}") for k in range(9))
    assert unsaid(fixture.report(metrics=many))["What could not be measured."].endswith("; and 3 more.")
    assert "What could not be measured." not in unsaid(fixture.report())


def test_limits_are_on_the_page() -> None:
    for name in ("one", "attacked", "public", "refused"):
        page = soup(REPORTS[name])
        listed = page.find("dl", class_="limits")
        last = REPORTS[name][-1]
        assert [words(one) for one in listed.find_all("dt")] == [limit.what for limit in limits(last)]
        assert page.find_all("h2")[-1].get_text() == "What this report does not show"
    assert "one run of 3 rounds" in words(soup(REPORTS["rounds"]))


@pytest.mark.parametrize("changes", [{"metrics": ()}, {"certificates": ()}, {"silos": (), "certificates": ()}])
def test_limits_survive_what_is_missing(changes: dict[str, Any]) -> None:
    for report in (ATTACKED, public_report(ATTACKED)):
        assert all(limit.what and limit.why for limit in limits(report.model_copy(update=changes)))
