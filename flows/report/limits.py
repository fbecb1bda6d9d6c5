"""What a report does not show, said from what is in it: the page's last section, and not its least.

Every sentence must hold for whoever reads the page. Those that depend on a figure name it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tutelage.configs.records import RoundReport
from tutelage.flows.report.attacks_view import Attacks, guessing_auc
from tutelage.flows.report.epsilon import Epsilon
from tutelage.flows.report.figures import NOT_MEASURED, families, figure, withheld
from tutelage.flows.report.names import JUDGED, lower, title_of

_NAMED = 6
"""Of more missing figures than this the rest is only counted."""


@dataclass(frozen=True)
class Limit:
    """Something that the report does not show."""

    what: str
    why: str


def limits(report: RoundReport, rounds: int = 1) -> list[Limit]:
    """What the report of a run of some rounds does not show, by its last round."""
    return [
        *_of_the_guarantee(report),
        *_of_the_attacks(report),
        *_of_the_scores(report),
        *_of_the_report(report, rounds),
    ]


def _of_the_guarantee(report: RoundReport) -> Iterator[Limit]:
    guarantee = Epsilon.of(report).guarantee
    if guarantee is None:
        yield Limit(
            "That a lesson gives nothing away.",
            "The lessons were screened only. There is no formal guarantee: no ε is claimed, and nothing bounds what an "
            "attack could find, by the means tried here or by others.",
        )
        return
    if not guarantee.holds:
        yield Limit(
            "A guarantee for the whole run.",
            f"There is none: {guarantee.why_not}. What is certified holds for its own silo.",
        )
    else:
        yield Limit(
            f"That nothing at all is learned about a {guarantee.unit}.",
            f"The guarantee bounds how far one {guarantee.unit} can move the odds, under {guarantee.adjacency}. What "
            "many have in common may be learned, and is meant to be; what stands in several is protected less for it.",
        )
    yield Limit(
        "That the code ran as certified.",
        "Certificates are signed by the silos themselves and rest on ledgers that they keep. An audit can contradict a "
        "certificate that is wrong by enough; it cannot confirm one.",
    )


def _of_the_attacks(report: RoundReport) -> Iterator[Limit]:
    epsilon, attacks = Epsilon.of(report), Attacks.of(report)
    yield Limit(
        "What other attackers could do.",
        "Each figure is what one attack found, with its knowledge, on these texts: a lower bound. With better models, "
        "or knowing part of a record, one may find more. Nobody combined these attacks, and timing and other side "
        "channels were not tried.",
    )
    if epsilon.best is None:
        yield Limit("How large ε is at least.", f"ε was {NOT_MEASURED} by an audit.")
    elif epsilon.best.most.value is not None:
        best = epsilon.best
        yield Limit(
            f"An ε above {best.most.text}, were there one.",
            f"{best.low.n} canaries cannot show more even if every guess is right. And they are artificial: a real "
            "record may be remembered better than they are, or worse.",
        )
    first = figure(report, "canary.rank0_share")
    if first.n and first.bounded and first.high is not None:
        yield Limit(
            "Rare leaks of secrets.",
            f"Exposure was measured on {first.n} planted secrets. {first.text} of them came first; so few leave room "
            f"for up to {first.high:.0%}.",
        )
    sized = [(one.members, one.nonmembers) for one in attacks.every if one.members and one.nonmembers]
    if sized:
        members, nonmembers = max(sized)
        yield Limit(
            "Weak leaks, and leaks of a few records.",
            f"With {members} members and {nonmembers} non-members an AUC below "
            f"{guessing_auc(members, nonmembers)[1]:.2f} looks like guessing, and what is found at less than one false "
            f"alarm in {nonmembers} does not show. The members are ordinary records; an unusual one is at more risk.",
        )
    elif withheld(report):
        yield Limit(
            "What was found about real records.",
            "This is the version to pass on. Membership inference on real records, extraction, overlap with records "
            "and students that are never released stay with the silos, where they were measured. Of gate rules on such "
            "figures it says whether they held, and no more.",
        )
    else:
        yield Limit(
            "Whether records can be told from others.", f"Membership inference on real records was {NOT_MEASURED}."
        )


def _of_the_scores(report: RoundReport) -> Iterator[Limit]:
    student = figure(report, f"{families(report)[0]}.student")
    size = f"one test set of {student.n} texts" if student.n else "one test set"
    yield Limit(
        "How the student does elsewhere.",
        f"Scores are from {size} of the same source as the silos' records. With other texts, at another time or in "
        "another language it may do worse. Intervals cover the choice of test texts and nothing else.",
    )
    seen = [figure(report, name) for name in ("contamination.lessons_share", "contamination.silos_share")]
    unknown = [lower(one.label) for one in seen if one.value is None]
    if unknown:
        yield Limit("That the test was unseen.", f"This version does not say: {'; '.join(unknown)}.")
    scanned = any(metric.name.startswith("pii.recall.") and metric.measured for metric in report.metrics)
    yield Limit(
        "What screening missed.",
        "The scanner was measured on generated text in which the personal data is known. What it missed in the silos' "
        "drafts nobody counted, and a text can point to a person without any such data."
        if scanned
        else f"What share of personal data the scanner finds was {NOT_MEASURED}; and a text can point to a person "
        "without any such data.",
    )


def _of_the_report(report: RoundReport, rounds: int) -> Iterator[Limit]:
    several, seed = f" of {rounds} rounds" if rounds > 1 else "", f" ({report.seed})" if report.seed is not None else ""
    yield Limit(
        "What another run would give.",
        f"This is one run{several} with one seed{seed}. Intervals do not cover the chance in teaching, in training and "
        "in which canaries were planted.",
    )
    yield Limit(
        "Figures that give nothing away themselves.",
        "The number of units and the names of labels are public, and counts of drafts are of the mechanism's output. "
        "But whether a gate rule on internal figures held is one bit about the records that no ε covers."
        if report.certificates
        else "Counts of records, drafts, labels and replaced personal data are exact and unprotected, and so is "
        "whether a gate rule on internal figures held.",
    )
    if not withheld(report) and any(metric.internal for metric in report.metrics):
        yield Limit(
            "That this page may be passed on.",
            "This version holds figures marked internal, computed from private records without protection. The one in "
            "the run's release/ folder is without them.",
        )
    missing = _missing(report)
    if missing:
        more = f"; and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        yield Limit("What could not be measured.", f"{'; '.join(missing[:_NAMED])}{more}.")
    recompute = (
        ", and “tutelage audit recompute RUN” each certificate's ε against the ledgers" if report.certificates else ""
    )
    yield Limit(
        "That its own figures are right.",
        f"A page proves nothing. “tutelage audit verify RUN” checks the run's files against their digests and "
        f"signatures{recompute}. No file can show that every step was taken in earnest.",
    )


def _missing(report: RoundReport) -> list[str]:
    """Figures that the report has without a value; those that many attacks lack, once."""
    names = [metric.name for metric in report.metrics if figure(report, metric.name).value is None]
    attacks = Counter(name.rpartition(".")[2] for name in names)
    many = {measure: count for measure, count in attacks.items() if measure in JUDGED and count > 1}
    rest = [title_of(name) for name in names if name.rpartition(".")[2] not in many]
    return [*(f"{JUDGED[measure]} by {count} attacks" for measure, count in many.items()), *rest]
