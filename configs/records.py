"""What passes between the rooms: examples, lessons, metrics, reports and decisions.

Every class is a frozen pydantic model. Nothing here holds private text except `Example`, which is only made
inside `privacy` from a vault record, or from a lesson that has been released.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """A value: immutable, and an unknown field is an error."""

    # a figure that could not be measured is NaN, and must survive JSON as NaN
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Message(Frozen):
    """One turn of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Example(Frozen):
    """One prompt and its completion; for `classification` the completion is the label."""

    id: str
    # it may be a private record's: its repr, as it would stand in a traceback or a log, shows no text
    prompt: str = Field(repr=False)
    completion: str = Field(repr=False)

    def messages(self, instruction: str | None = None) -> list[dict[str, str]]:
        """The example as chat messages, with the instruction (if any) as system prompt."""
        turns = [
            Message(role="user", content=self.prompt),
            Message(role="assistant", content=self.completion),
        ]
        if instruction:
            turns.insert(0, Message(role="system", content=instruction))
        return [turn.model_dump() for turn in turns]


Mechanism = Literal["screened", "private_prediction", "private_evolution"]


class Lesson(Frozen):
    """A released synthetic example or instruction. Made and signed by `privacy/release.py` only."""

    id: str
    kind: Literal["example", "instruction"]
    silo: str
    """Name of the silo whose teacher wrote it; `_review` where a reviewer edited it since."""
    round: int = Field(ge=1)
    prompt: str
    """The synthetic text; for an instruction, the instruction itself."""
    completion: str
    """The label or the answer; empty for an instruction."""
    mechanism: Mechanism
    """How it was protected. `screened`: PII replaced and copies dropped; hygiene, no formal guarantee. The others:
    written under differential privacy, and the silo's certificate of the round says what that is worth."""
    prompt_version: str
    """Version of the teacher's prompt that led to it."""
    signature: str
    """Ed25519 signature (hex) of the silo, or for `_review` of the run, over all other fields and the run id."""

    def example(self) -> Example:
        """The lesson as a training example."""
        return Example(id=self.id, prompt=self.prompt, completion=self.completion)


class Metric(Frozen):
    """A measured figure with its interval. A value that could not be measured is NaN, and gates refuse it."""

    name: str
    """Dotted, e.g. `accuracy.student`, `canary.rank0_share`, `overlap.longest_run_max`."""
    value: float
    ci_low: float
    ci_high: float
    n: int = Field(ge=0)
    """How many items it was measured on."""
    interval: str = "95%"
    """How the interval was made, e.g. `95% Wilson`, `95% bootstrap (1000)`, `none: a maximum`."""
    internal: bool = False
    """True where it was computed from private records and is not protected: for the silos, not for publication."""

    @property
    def measured(self) -> bool:
        return not any(math.isnan(x) for x in (self.value, self.ci_low, self.ci_high))


class RuleOutcome(Frozen):
    """One gate rule applied to one report."""

    rule: str
    """The rule in words, e.g. `accuracy.student (ci_low) >= 0.60`."""
    observed: float | None
    """The figure compared; None where it was missing or not a number."""
    threshold: float
    passed: bool
    reason: str


class GateDecision(Frozen):
    """Whether a round's student may be published. Passed only if every rule passed and there was at least one."""

    passed: bool
    outcomes: tuple[RuleOutcome, ...]


class Override(Frozen):
    """Somebody published a student that its gate refused, and says so with their name."""

    by: str = Field(min_length=3, max_length=100)
    reason: str = Field(min_length=20, max_length=2000)


class Approval(Frozen):
    """What a person decided about a student that its gate passed."""

    approved: bool
    by: str = Field(min_length=3, max_length=100)
    reason: str = Field(min_length=3, max_length=2000)
    at: str
    """UTC, ISO 8601."""


class Curve(Frozen):
    """An attack's ROC curve: how many members it finds at each share of false alarms."""

    name: str
    """The attack's, e.g. `mia.loss`."""
    fpr: tuple[float, ...]
    """False positive rates, rising, from 0 to 1."""
    tpr: tuple[float, ...]
    """True positive rates, as many."""
    members: int = Field(ge=0)
    nonmembers: int = Field(ge=0)
    internal: bool = False
    """As a metric's."""


class CurvePoint(Frozen):
    """One evaluation during training; losses in nats per completion token."""

    step: int
    train_loss: float
    heldback_loss: float | None


class SiloCounts(Frozen):
    """What one silo did in a round. Counts only, never texts."""

    silo: str
    records: int
    """Owners, where they are what a formal mechanism protects."""
    prompts: int
    drafts: int
    malformed: int
    """Drafts that could not be parsed, retried within the recipe's bound."""
    dropped: dict[str, int]
    """Screening: reason -> drafts dropped."""
    replaced: dict[str, int]
    """Screening: PII entity -> spans replaced."""
    released: int


class Spend(Frozen):
    """One entry of a certificate: something that was done to a silo's units under differential privacy."""

    what: Literal["label_counts", "teach", "vote"]
    round: int
    event: dict[str, Any]
    """A dp-accounting event, as `privacy.accounting.event_to_json` writes it."""
    parts: int
    """How many disjoint parts of the silo it was done to; together they cost what one costs."""
    parameters: dict[str, float | int | str]
    """The mechanism's: clip, batch, temperature and the like. They imply the event."""


class Certificate(Frozen):
    """What one silo's lessons of a run are guaranteed to give away at most. Signed by the silo."""

    run_id: str
    silo: str
    round: int
    """It covers this round and those before it."""
    mechanism: Mechanism
    unit: Literal["record", "owner"]
    units: int
    """N"""
    adjacency: str
    delta: float
    epsilon: float
    """An upper bound, of everything this run has released about any one unit of the silo."""
    epsilon_asked: float
    """What the recipe allows the whole run."""
    epsilon_ledger: float
    """The same of everything the silo's ledger holds, other runs included."""
    spends: tuple[Spend, ...]
    not_charged: tuple[str, ...]
    """What was used or released beside that, and why it costs nothing here, in sentences."""
    ledger: str
    """The ledger's name: the silo's fingerprint."""
    ledger_head: str
    """sha256 (hex) of the ledger's last line when this was written."""
    lessons_digest: str
    """sha256 (hex) of the released lessons' file."""
    version: str
    """Of tutelage."""
    signature: str
    """Ed25519 signature (hex) of the silo over all other fields."""


class TeacherSpending(Frozen):
    """What one of a silo's teachers did in a round."""

    name: str
    drafts: int = Field(ge=0)
    """Of its drafts, those that stood; what was written for calibration aside."""
    labels: tuple[str, ...] = ()
    """Labels that are its own, where they are routed."""
    prompt_tokens: int = Field(ge=0)
    """Of calls that a killed process had begun, the most they may have taken."""
    draft_tokens: int = Field(ge=0)
    """As `prompt_tokens`."""
    cost: float = Field(ge=0)
    score: Metric | None = None
    """Mean score of its drafts of the calibration prompts."""


class Spending(Frozen):
    """What the several teachers of a silo cost in a round, and what that was worth."""

    silo: str
    route: Literal["cascade", "skill", "label"]
    unit: str
    """Of `budget` and of every cost."""
    budget: float | None
    """The silo's share in this round; None: no bound."""
    cost: float = Field(ge=0)
    """Never more than `budget`; `lost` included."""
    lost: float = Field(ge=0)
    """What calls of killed processes may have cost, counted in full."""
    unwritten: int = Field(ge=0)
    """Drafts that were asked for and not written, since the budget covered no more."""
    teachers: tuple[TeacherSpending, ...]
    """The cheapest first, in a cascade."""
    thresholds: tuple[float, ...] = ()
    """A cascade's: a teacher's draft stands if it scores at least this, in [0, 1]; above 1: none does."""
    calibration_drafts: int = Field(0, ge=0)
    """Drafts that each teacher wrote for the prompts that all answered."""
    score: Metric | None = None
    """Mean score of what stands in the cascade, on those, each half under thresholds learnt on the other."""
    score_dearest: Metric | None = None
    """The same if the dearest teacher wrote everything."""
    score_gain: Metric | None = None
    """`score` less `score_dearest`, place by place."""
    cost_expected: float | None = None
    """Of a draft in the cascade, by the calibration."""
    cost_dearest: float | None = None
    """Of a draft by the dearest teacher."""


class RoundReport(Frozen):
    """Everything measured in one round. Holds no private text and no time stamp (digests must repeat)."""

    run_id: str
    round: int
    recipe_name: str
    recipe_digest: str
    protection: str
    """What the lessons' protection is and is not, in a sentence."""
    certificates: tuple[Certificate, ...] = ()
    """One per silo under a formal mechanism, none where lessons were screened only."""
    instruction: str
    """The released instruction the student was given."""
    silos: tuple[SiloCounts, ...]
    spending: tuple[Spending, ...] = ()
    """Per silo that has several teachers; none where each has one."""
    lessons_per_class: dict[str, int]
    reviewed: dict[str, int] = Field(default_factory=dict)
    """What reviewers had decided about lessons of earlier rounds when this round chose: verdict -> how many."""
    preference_pairs: int = Field(0, ge=0)
    """On how many pairs of lessons that reviewers' decisions make the student was trained after the lessons (DPO)."""
    topics_next: dict[str, float]
    """Share of each class asked for in the next round, from this report's aggregates."""
    metrics: tuple[Metric, ...]
    roc: tuple[Curve, ...] = ()
    """Of the attacks that tell members from non-members."""
    curve: tuple[CurvePoint, ...]
    decision: GateDecision
    override: Override | None = None
    """Who published the student although its gate refused; None: nobody, as it should be."""
    lessons_digest: str
    adapter_digest: str
    versions: dict[str, str] = Field(default_factory=dict)
    """Package -> version, of whatever the figures depend on. Empty where nobody wrote them down."""
    seed: int | None = None
    """The recipe's, of sampling and training. Canary coins, keys and noise under a guarantee take none."""

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, or None."""
        return next((metric for metric in self.metrics if metric.name == name), None)
