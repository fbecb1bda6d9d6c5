"""Reports as a run makes them, for the tests of whatever shows or reads reports."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

import numpy as np

from tutelage.configs.records import (
    Certificate,
    Curve,
    CurvePoint,
    Metric,
    Override,
    RoundReport,
    SiloCounts,
    Spend,
    Spending,
    TeacherSpending,
)
from tutelage.configs.schema import GateConfig, GateRule, ScreenConfig
from tutelage.privacy import accounting
from tutelage.privacy.attacks import one_run
from tutelage.privacy.attacks.base import Settings
from tutelage.privacy.attacks.membership import judge
from tutelage.privacy.gate import decide
from tutelage.privacy.stats import auc_metric, max_metric, mean_metric, missing_metric, point_metric, share_metric

PROTECTION = (
    "Lessons are screened: personal data was replaced and copies of private records were dropped. "
    "This is hygiene, without a formal guarantee."
)
FORMAL_PROTECTION = "Lessons were written under differential privacy; the certificates say what that is worth."
GATE = GateConfig(
    rules=(
        GateRule(metric="accuracy.student", bound="ci_low", op=">=", value=0.6),
        GateRule(metric="accuracy.student", minus="accuracy.zero_shot", op=">=", value=0.05),
        GateRule(metric="canary.rank0_share", op="<=", value=0.25),
        GateRule(metric="overlap.longest_run_max", op="<=", value=12),
        GateRule(metric="overlap.near_duplicate_share", op="<=", value=0.0),
        GateRule(metric="forgetting.increase", op="<=", value=0.5),
    )
)
FORMAL_GATE = GateConfig(rules=(*GATE.rules, GateRule(metric="epsilon.claimed", op="<=", value=4.0)))
INTERNAL = "Figures marked internal are computed from private records without protection and stay with the silos."
UNITS = (1305, 1420, 1351, 1388)
"""N of a formal run's silos."""
TIMINGS = {
    "prepare": 14.2, "round-1/teach-silo-0": 41.8, "round-1/teach-silo-1": 40.3, "round-1/teach-silo-2": 42.0,
    "round-1/teach-silo-3": 39.9, "round-1/screen": 22.7, "round-1/train": 71.5, "round-1/measure": 48.1,
    "round-1/attack-student": 19.4,
}  # fmt: skip


def around(name: str, value: float, half: float, n: int, internal: bool = False) -> Metric:
    """A figure with a symmetric interval, as a bootstrap of `n` items might give it."""
    low, high, how = value - half, value + half, "95% bootstrap (1000)"
    return Metric(name=name, value=value, ci_low=low, ci_high=high, n=n, interval=how, internal=internal)


def metrics(student_hits: int = 97) -> list[Metric]:
    """Everything a classification round measures, through the project's own statistics."""
    hits = {
        "zero_shot": 66,
        "few_shot": 79,
        "instruction": 71,
        "student": student_hits,
        "originals": 112,
        "tfidf": 95,
    }
    inside, outside = [0.4, 2.7, 0.9, 3.19, 1.1], [1.3, 0.2, 2.4]
    return [
        *(share_metric(f"accuracy.{method}", k, 120, internal=method == "originals") for method, k in hits.items()),
        *(around(f"macro_f1.{method}", k / 120 - 0.006, 0.07, 120) for method, k in hits.items()),
        share_metric("recall.zero_shot.spam", 58, 60),
        share_metric("recall.zero_shot.ham", 8, 60),
        share_metric("recall.student.spam", 52, 60),
        share_metric("recall.student.ham", student_hits - 52, 60),
        around("forgetting.loss_before", 3.112, 0.21, 16),
        around("forgetting.loss_after", 3.187, 0.22, 16),
        around("forgetting.increase", 0.075, 0.04, 16),
        mean_metric("canary.exposure_mean", inside, note="1.375 with no leak"),
        max_metric("canary.exposure_max", inside),
        share_metric("canary.rank0_share", 0, 5, exact=True, note="0.0156 with no leak"),
        share_metric("canary.rank1pct_share", 0, 5, exact=True, note="0.0156 with no leak"),
        mean_metric("canary.exposure_out_mean", outside, note="1.375 with no leak"),
        auc_metric("canary.auc", inside, outside),
        point_metric("canary.p_value", 0.389, 5, "a p-value"),
        point_metric("lessons.canary_verbatim", 0, 5, "a count"),
        share_metric("lessons.canary_rank0_share", 0, 5, exact=True, note="0.0156 with no leak"),
        point_metric("overlap.longest_run_max", 9, 96, "a maximum", internal=True),
        share_metric("overlap.ngram_share", 3, 96, internal=True, note="an upper bound over silos"),
        share_metric("overlap.near_duplicate_share", 0, 96, internal=True, note="an upper bound over silos"),
        point_metric("overlap.cosine_max", 0.8712, 96, "a maximum", internal=True),
    ]


SEPARATION = {
    "mia.loss": 0.1, "mia.gain": 0.35, "mia.zlib": 0.05, "mia.min_k": -0.1, "mia.rmia": 0.2,
    "synthetic.ngram": 0.75, "synthetic.neighbour": 0.3, "synthetic.neighbour_meaning": 0.15,
    "synthetic.auxiliary": 0.4,
}  # fmt: skip
"""Attack -> by how many standard deviations members score higher."""
OVERRIDE = Override(
    by="Ada Example", reason="A test of the registry with public records only; nobody's data is at stake."
)


def attacks(leak: float = 1.0, members: int = 100, nonmembers: int = 100) -> tuple[list[Metric], list[Curve]]:
    """What the attacks that tell members from non-members find where `SEPARATION` is `leak` times as large."""
    rng, found = np.random.default_rng(7), []
    for name, apart in SEPARATION.items():
        others = nonmembers // 2 if name == "mia.rmia" else nonmembers
        inside, outside = rng.normal(leak * apart, 1, members), rng.normal(0, 1, others)
        found.append(judge(name, inside, outside, Settings(resamples=100), internal=True))
    return [metric for one in found for metric in one.metrics], [curve for one in found for curve in one.curves]


def audits(lessons: float = 0.9, student: float = 0.0, canaries: int = 100) -> list[Metric]:
    """The one-run audit of canaries whose scores are so many standard deviations apart by their coin."""
    rng = np.random.default_rng(3)
    member = rng.random(canaries) < 0.5
    noise = rng.normal(0, 1, (2, canaries))
    return [
        metric
        for name, apart, scores in zip(("lessons", "student"), (lessons, student), noise, strict=True)
        for metric in one_run.audit(f"audit.{name}", scores + apart * member, member, 1e-5)
    ]


def further_attacks() -> list[Metric]:
    """Canaries in the instruction, extraction, contamination and the scanner on planted personal data."""
    rng = np.random.default_rng(5)
    scanned = [
        metric
        for entity in ScreenConfig().entities
        for metric in (
            share_metric(f"pii.recall.{entity}", 200 - int(rng.integers(0, 25)), 200, exact=True),
            share_metric(f"pii.precision.{entity}", 204 - int(rng.integers(0, 15)), 207, exact=True),
        )
    ]
    return [
        mean_metric("canary.exposure_skew_normal_mean", [0.5, 2.9, 0.8, 4.1, 1.0], note="1.5 with no leak"),
        point_metric("instruction.canary_verbatim", 0, 5, "a count"),
        point_metric("instruction.canary_run_max", 2, 5, "a maximum; 2 words of a canary that was not planted"),
        auc_metric("instruction.canary_auc", [0.2, -0.4, 0.9, 0.3, 0.1], [0.4, -0.1, 0.0]),
        *(
            share_metric(f"extraction.prefix_{k}{side}", hits, n, internal=True, exact=True, note="the next 50 tokens")
            for k, n, inside, outside in ((16, 96, 1, 0), (32, 91, 1, 0), (64, 77, 2, 1))
            for side, hits in (("", inside), ("_out", outside))
        ),
        share_metric("contamination.lessons_share", 0, 120),
        share_metric("contamination.silos_share", 3, 120, internal=True, note="an upper bound over silos"),
        *scanned,
        share_metric("pii.recall.EMAIL_ADDRESS.obfuscated", 71, 160, exact=True),
        share_metric("pii.recall.PERSON.bare", 48, 66, exact=True),
        share_metric("pii.clean_changed_share", 9, 200, exact=True),
    ]


def attacked(report: RoundReport, leak: float = 1.0, audit: float = 0.9, **changes: Any) -> RoundReport:
    """The report with everything that attacks and audits may add, on a pipeline that leaks so much."""
    judged, curves = attacks(leak)
    fields = {
        "metrics": (*report.metrics, *judged, *audits(audit), *further_attacks()),
        "roc": tuple(curves),
        "versions": {"tutelage": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.20.1"},
        "seed": 17,
    }
    return report.model_copy(update={**fields, **changes})


def brackets(public: int = 74, unprotected: int = 104) -> list[Metric]:
    """What a formal round measures beside that, from the hits among 120 at ε = 0 and at ε = ∞."""
    return [
        metric
        for method, k, internal in (("epsilon_0", public, False), ("epsilon_inf", unprotected, True))
        for metric in (
            share_metric(f"accuracy.{method}", k, 120, internal=internal),
            around(f"macro_f1.{method}", k / 120 - 0.006, 0.07, 120, internal),
            share_metric(f"recall.{method}.spam", k // 2 + 3, 60, internal=internal),
            share_metric(f"recall.{method}.ham", k // 2 - 3, 60, internal=internal),
        )
    ]


def silo(k: int) -> SiloCounts:
    """A silo's counts; they differ by silo, and every draft is accounted for."""
    dropped = {
        "off_label": 21 - k, "not_kept": 52,
        "common_run": 6 + k, "near_duplicate": 4, "neighbour": 2 * k, "too_short": 2,
    }  # fmt: skip
    return SiloCounts(
        silo=f"silo-{k}",
        records=400,
        prompts=16,
        drafts=128,
        malformed=11 - k,
        dropped=dropped,
        replaced={"PERSON": 31 + 4 * k, "EMAIL_ADDRESS": 12, "URL": 17 - k, "PHONE_NUMBER": 2},
        released=32 - k,
    )


def report(round: int = 1, **changes: Any) -> RoundReport:
    """A passed round of the demo; `changes` replace fields."""
    figures = tuple(metrics(95 + 2 * round))
    curve = [
        CurvePoint(
            step=step,
            train_loss=_rounded(0.12 + 2.9 * math.exp(-step / 9)),
            heldback_loss=_rounded(0.31 + 2.5 * math.exp(-step / 8) + 0.0016 * step) if step % 12 == 0 else None,
        )
        for step in range(4, 37, 4)
    ]
    fields: dict[str, Any] = {
        "run_id": "demo-5f3a9c1e",
        "round": round,
        "recipe_name": "demo",
        "recipe_digest": digest("recipe"),
        "protection": PROTECTION,
        "instruction": "Read the e-mail. Answer spam if it sells or advertises something nobody asked for, else ham.",
        "silos": tuple(silo(k) for k in range(4)),
        "lessons_per_class": {"spam": 48, "ham": 48},
        "topics_next": {"spam": 0.42, "ham": 0.58},
        "metrics": figures,
        "curve": tuple(curve),
        "decision": decide(figures, GATE, lessons=96, defended=True),
        "lessons_digest": digest(f"lessons {round}"),
        "adapter_digest": digest(f"adapter {round}"),
    }
    return RoundReport(**{**fields, **changes})


def spending(k: int = 0, **changes: Any) -> Spending:
    """What a cascade of two teachers in silo k cost."""
    low, high, gain = (mean_metric("teachers.score", values) for values in ([0.2, 0.6], [0.5, 0.9], [-0.1, 0.2]))
    teachers = (
        TeacherSpending(name="small", drafts=90 - k, prompt_tokens=4000, draft_tokens=5000, cost=0.9, score=low),
        TeacherSpending(name="large", drafts=10 + k, prompt_tokens=900, draft_tokens=800, cost=1.7, score=high),
    )
    fields: dict[str, Any] = {
        "silo": f"silo-{k}", "route": "cascade", "unit": "USD", "budget": 3.0, "cost": 2.6, "lost": 0.1 * k,
        "unwritten": k, "teachers": teachers, "thresholds": (0.612,), "calibration_drafts": 24, "score": high,
        "score_dearest": high, "score_gain": gain, "cost_expected": 0.002, "cost_dearest": 0.008,
    }  # fmt: skip
    return Spending(**{**fields, **changes})


def refused(round: int = 1) -> RoundReport:
    """A round whose gate refused: too low an accuracy, and a canary figure that could not be measured."""
    name = "canary.rank0_share"
    figures = tuple(missing_metric(name) if metric.name == name else metric for metric in metrics(77))
    return report(round, decision=decide(figures, GATE, lessons=96, defended=True), metrics=figures)


def formal(round: int = 1, rounds: int | None = None, **changes: Any) -> RoundReport:
    """A passed round under ε = 4 for all of `rounds` (None: it is the last); `changes` replace fields."""
    certificates = tuple(certificate(k, round, rounds or round) for k in range(4))
    claimed = max(one.epsilon for one in certificates)
    figures = (*metrics(), *brackets(), point_metric("epsilon.claimed", claimed, 4, "an upper bound"))
    counts = {"prompts": 81, "drafts": 162, "malformed": 3, "dropped": {"too_short": 9}, "released": 150}
    fields: dict[str, Any] = {
        "protection": FORMAL_PROTECTION,
        "certificates": certificates,
        "silos": tuple(silo(k).model_copy(update={"records": UNITS[k], **counts}) for k in range(4)),
        "metrics": figures,
        "decision": decide(figures, FORMAL_GATE, lessons=96, defended=True),
    }
    return report(round, **{**fields, **changes})


def certified(*changes: dict[str, Any]) -> RoundReport:
    """A formal round with fields of its silos' certificates replaced, silo by silo."""
    made = formal().certificates
    return formal(
        certificates=tuple(one.model_copy(update=changes[k] if k < len(changes) else {}) for k, one in enumerate(made))
    )


def certificate(k: int, round: int = 1, rounds: int = 1) -> Certificate:
    """What silo k has spent by a round of a run of `rounds`: all of ε = 4 by the last. Silo 2 was in another run."""
    delta = accounting.max_delta(UNITS[k])
    rho = accounting.max_rho(4.0, delta) * (1 - 1e-9)  # shares of it may add up to a little more
    counts, vote, teach = 0.02 * rho, 0.098 * rho / rounds, 0.882 * rho / rounds
    moves = 0.9 * math.sqrt(2 * teach / 80)
    drawn: dict[str, float | int | str] = {
        "sensitivity": moves, "temperature": 0.9, "top_k": 100, "max_tokens": 80, "batch_units": 16,
        "divisor spam": 5.4, "clip spam": 5.4 * moves, "divisor ham": 10.6, "clip ham": 10.6 * moves,
    }  # fmt: skip
    spends = [_histogram("label_counts", 1, counts)]
    for r in range(1, round + 1):
        written = {"event": "zcdp", "rho": teach}
        spends += [Spend(what="teach", round=r, event=written, parts=UNITS[k] // 16, parameters=drawn)]
        spends += [_histogram("vote", r, vote)]
    events = [accounting.event_from_json(spend.event) for spend in spends]
    elsewhere = [accounting.event_from_json({"event": "zcdp", "rho": 0.15})] if k == 2 else []
    return Certificate(
        run_id="demo-5f3a9c1e",
        silo=f"silo-{k}",
        round=round,
        mechanism="private_prediction",
        unit="record",
        units=UNITS[k],
        adjacency=accounting.ADJACENCY,
        delta=delta,
        epsilon=accounting.epsilon(events, delta),
        epsilon_asked=4.0,
        epsilon_ledger=accounting.epsilon([*events, *elsewhere], delta),
        spends=tuple(spends),
        not_charged=(
            f"The number of units, {UNITS[k]}, is public: a unit replaced by null leaves its place.",
            INTERNAL,
        ),
        ledger=digest(f"silo {k}")[:16],
        ledger_head=digest(f"ledger of silo {k} after round {round}"),
        lessons_digest=digest(f"lessons of silo {k}, round {round}"),
        version="0.1.0",
        signature=(digest(f"signature {k}") * 2),
    )


def _histogram(what: Literal["label_counts", "vote"], round: int, rho: float) -> Spend:
    event = {"event": "zcdp", "rho": rho}
    return Spend(what=what, round=round, event=event, parts=1, parameters={"sigma": 1 / math.sqrt(2 * rho)})


def digest(text: str) -> str:
    """A sha256, as digests in reports are."""
    return hashlib.sha256(text.encode()).hexdigest()


def _rounded(value: float) -> float:
    return round(value, 4)
