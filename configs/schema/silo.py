"""What a silo with a place of its own agrees to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tutelage.configs.schema.data import FileData, Source
from tutelage.configs.schema.engines import EngineConfig
from tutelage.configs.schema.privacy import ScreenConfig
from tutelage.configs.schema.section import Section


class SiloConfig(Section):
    """What a silo that takes part from its own place agrees to: `silo.yaml` in its folder. No recipe can ask for more.

    Where a recipe and this differ, this holds: the silo's own records, screen and budget.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """As recipes call it under `federation.silos`."""
    exchange: str = Field(min_length=1)
    """Folder or object storage where recipes lie and lessons go: `/srv/exchange`, `s3://bucket/folder`."""
    coordinator: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Public key of who may ask it to take part, as `tutelage silo coordinator` prints it there."""
    records: Source
    """The silo's private records."""
    epsilon: float | None = Field(ge=0, allow_inf_nan=False)
    """The most that all runs together may give away about one unit. null: screened lessons may leave, which no ε
    bounds."""
    unit: Literal["record", "owner"] = "record"
    """What must be protected as a whole. `owner` needs `records.columns.owner`."""
    public_label_counts: bool = False
    """Whether a recipe may treat it as no secret how often each label occurs here."""
    screen: ScreenConfig = ScreenConfig()
    """Instead of the recipe's."""
    model: str | None = None
    """The teacher, where it lies elsewhere here than the recipe says: a local folder, or another name of it."""
    adapter: str | None = None
    """The same of `teach.adapter`. None: as the recipe says."""
    adapter_is_public: bool = False
    """Whether the adapters that its teachers get here were tuned on text that is no secret of this silo's. No ε
    accounts for that, so a recipe that promises one gets none of them where this is false, whatever it says itself."""
    engine: EngineConfig | None = None
    """What the teacher runs on here, whatever the recipe says. None: as the recipe says, but never on a server: no
    recipe from elsewhere has a say in where this silo's records are sent."""

    @model_validator(mode="after")
    def _protects(self) -> SiloConfig:
        if not self.screen.compare:
            raise ValueError("screen.compare cannot be false: nothing would keep a record from leaving word for word")
        owner = self.records.columns.owner if isinstance(self.records, FileData) else None
        if self.unit == "owner" and owner is None:
            raise ValueError("unit is owner, but records.columns.owner names no column")
        return self
