"""The student: how it is trained, measured, attacked and let through."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from tutelage.configs.schema.section import Section


class DpoConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) after the lessons, on what reviewers
    preferred. Guidance: the default rate suits tens of pairs; with hundreds, take a tenth of it."""

    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """How near the student stays to what the lessons made of it; the higher, the nearer."""
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(5e-5, gt=0, lt=1)


class StudentConfig(Section):
    """The LoRA student. Guidance: rank 8-32, learning rate 1e-4 to 1e-3 for a 135M base."""

    base: str = "smollm2-135m-instruct"
    rank: int = Field(16, ge=1, le=1024)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    learning_rate: float = Field(5e-4, gt=0, lt=1)
    warmup_share: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    epochs: int = Field(4, ge=1)
    batch_rows: int = Field(4, ge=1)
    """With few lessons steps count more than rows a step: under some 50 steps a 135M student stays unsteady."""
    max_tokens: int = Field(256, ge=16)
    """Rows are cut to this length, from the middle of the prompt, never from the completion."""
    heldback_share: float = Field(0.1, ge=0, lt=0.5)
    """Share of the lessons kept aside for early stopping."""
    patience_epochs: int = Field(2, ge=1)
    """Stop after this many epochs whose held-back loss is clearly worse than the best (by more than the standard error
    of the difference); the weights of the last epoch that isn't are kept."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the processor computes in it, else float32."""
    checkpoint_every_steps: int = Field(20, ge=1)
    dpo: DpoConfig | None = None
    """What to do with pairs of lessons that reviewers' decisions make, in a step after the lessons; None: nothing."""


class MeasureConfig(Section):
    """What the student is compared with."""

    few_shot_per_label: int = Field(2, ge=1)
    batch_rows: int = Field(16, ge=1)
    bootstrap: int = Field(1000, ge=100)
    originals: bool = True
    """Train the upper line: the same student on as many original records. Internal, never released."""
    neutral_texts: int = Field(16, ge=1, le=64)
    """Public texts for the forgetting check."""


AttackName = Literal[
    "loss", "zlib_ratio", "min_k", "rmia", "extraction", "ngram", "neighbour", "auxiliary", "instruction", "one_run"
]  # fmt: skip


class AttackConfig(Section):
    """The attacks of every round. Exposure and overlap are always measured."""

    run: tuple[AttackName, ...] = get_args(AttackName)
    """Which of the others are run; all of them, if this is left out."""
    members: int = Field(100, ge=2)
    """Records of the silos, and as many that no silo holds, for an attack to tell apart; as many of every label."""
    canaries: int = Field(100, ge=2)
    """Planted texts, half in and half out in expectation, each by its own coin. 100 can show an ε of 3.5 at most."""
    canary_copies: int = Field(1, ge=1)
    """How often a canary is planted. An ε measured on several copies is not one of a single record."""
    ranked_canaries: int = Field(8, ge=2)
    """How many of them are ranked among candidates, for the exposure."""
    canary_candidates: int = Field(64, ge=2)
    """Size of the set each canary's secret is ranked in."""


class GateRule(Section):
    """`metric (bound) [- minus] op value`. A missing or NaN figure refuses."""

    metric: str
    bound: Literal["value", "ci_low", "ci_high"] = "value"
    minus: str | None = None
    """Compare the difference to this other metric's value."""
    op: Literal[">=", "<="]
    value: float = Field(allow_inf_nan=False)
    min_n: int = Field(1, ge=1)
    """Fewest items the figure must rest on. A bound on a share of five says nothing, however good it looks."""


class GateConfig(Section):
    rules: tuple[GateRule, ...] = Field(min_length=1)
    approval: bool = False
    """Whether a person must approve what the rules have passed (`tutelage approve`): the run stops there until then."""
