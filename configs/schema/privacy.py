"""What keeps a silo's records out of its lessons: a mechanism, and the screen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tutelage.configs.records import Frozen
from tutelage.configs.schema.section import Section, not_a_boolean


class Screened(Frozen):
    """No formal guarantee: what teachers write is compared with the silo's records, and copies are dropped."""

    mechanism: Literal["screened"] = "screened"


class FormalPrivacy(Frozen):
    """What the formal mechanisms share: an ε for the whole run, every silo alike."""

    # pydantic wants the field that tells a union's members apart to have no validator, so this is no `Section`
    _numbers = field_validator("epsilon", "delta", "budget", "label_counts_share", "vote_share", mode="before")(
        not_a_boolean
    )

    epsilon: float = Field(ge=0, allow_inf_nan=False)
    """Of everything the run releases about one unit, all rounds together; adjacency: replace-by-null."""
    delta: float | None = Field(None, gt=0, lt=1)
    """None: 1/(N ln N) for a silo of N units, the largest that means anything."""
    unit: Literal["record", "owner"] = "record"
    """What is protected as a whole. `owner` needs `data.records.columns.owner`."""
    budget: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The ε that all runs together may ever spend on a silo; fixed when its ledger is begun. None: `epsilon`."""
    ledgers: Path | None = None
    """Folder of the silos' ledgers. None: `ledgers` beside the run folder."""
    label_counts: Literal["noised", "public"] = "noised"
    """How often each label occurs in a silo. `public`: declared to be no secret, and used and reported as it is."""
    label_counts_share: float = Field(0.02, gt=0, lt=0.5)
    """Share of the run's ρ (zCDP) that noised label counts cost."""
    vote_share: float = Field(0.1, gt=0, lt=0.9)
    """Share of what is left of ρ that votes cost, where `aggregate.method` is `vote`."""
    brackets: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, math.inf)
    """Other ε to do the same work at, to compare with. What they write never leaves the vault."""


class PrivatePredictionPrivacy(FormalPrivacy):
    """Every token is drawn from clipped differences of private to public scores (InvisibleInk)."""

    mechanism: Literal["private_prediction"]
    _whole = field_validator("batch_units", "instruction_units", "reference_tokens", mode="before")(not_a_boolean)

    batch_units: int = Field(16, ge=1, le=4096)
    """Private units behind the texts of one batch: one text per label (for `generation`: one)."""
    instruction_units: int = Field(0, ge=0, le=4096)
    """Private units behind the silo's wording of the instruction, apart from all others. 0: no such wording."""
    reference_tokens: int = Field(80, ge=8)
    """Records are cut to this many tokens in prompts."""


class PrivateEvolutionPrivacy(FormalPrivacy):
    """Candidates are written without private text; units vote for the nearest, and the winners are varied."""

    mechanism: Literal["private_evolution"]
    _whole = field_validator("iterations", "candidates_per_label", mode="before")(not_a_boolean)

    iterations: int = Field(3, ge=1, le=50)
    """Votes in a round."""
    candidates_per_label: int = Field(32, ge=2, le=10_000)
    """Texts voted on at a time."""


PrivacyConfig = Annotated[
    Screened | PrivatePredictionPrivacy | PrivateEvolutionPrivacy, Field(discriminator="mechanism")
]


class ScreenConfig(Section):
    """What is replaced and what is dropped before a draft may become a lesson."""

    compare: bool = True
    """Compare drafts with the silo's records and drop copies. Without it, and without a formal mechanism, nothing keeps
    a record from leaving word for word: such a run is there to be attacked, and no gate passes it."""
    entities: tuple[str, ...] = (
        "EMAIL_ADDRESS", "PHONE_NUMBER", "URL", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS",
        "PERSON", "STREET_ADDRESS",
    )  # fmt: skip
    pii_score: float = Field(0.4, ge=0, le=1)
    """Detections below this confidence are ignored."""
    check_texts: int = Field(200, ge=1)
    """Texts with planted personal data, for each entity, that the detectors' recall is measured on in every run."""
    max_common_run_tokens: int = Field(12, ge=2)
    """A draft sharing a longer run of words with one of its silo's records is dropped."""
    ngram: int = Field(8, ge=2)
    max_ngram_share: float = Field(0.2, ge=0, le=1)
    """Largest share of a draft's word n-grams that may occur in its silo's records."""
    max_jaccard: float = Field(0.5, gt=0, le=1)
    """Near-duplicate of a silo record (Jaccard index of word 3-grams) at or above this: dropped."""
    max_cosine: float = Field(0.92, gt=0, le=1)
    """Semantic neighbour (sentence embedding) of a silo record at or above this: dropped."""
    min_words: int = Field(6, ge=1)
