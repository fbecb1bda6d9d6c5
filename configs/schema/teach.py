"""How silos' teachers write drafts: with one model, or with several that a route chooses among."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tutelage.configs.records import Frozen
from tutelage.configs.schema.engines import EngineConfig, OpenAIConfig, TransformersConfig
from tutelage.configs.schema.section import Section, not_a_boolean

_MOST_TEACHERS = 4
"""Thresholds are chosen by trying all that are worth it: (scores + 2) to the power of teachers - 1."""


class TeacherConfig(Section):
    """One of several teachers, and what it costs."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """As routes and reports call it."""
    model: str
    """As `teach.model`."""
    engine: EngineConfig = TransformersConfig()
    """As `teach.engine`."""
    adapter: str | None = None
    """As `teach.adapter`."""
    prompt_price: float = Field(0, ge=0, allow_inf_nan=False)
    """Of a million tokens of prompts, in the route's `unit`: money, joules, or FLOPs."""
    draft_price: float = Field(0, ge=0, allow_inf_nan=False)
    """Of a million tokens of drafts."""

    def cost(self, read: int, drawn: int) -> Fraction:
        """What so many tokens of prompts and of drafts cost, exactly, in the route's unit."""
        prices = (Fraction(str(self.prompt_price)), Fraction(str(self.draft_price)))
        return (prices[0] * read + prices[1] * drawn) / 1_000_000


class _Priced(Frozen):
    """A route whose teachers are paid by the token."""

    # pydantic wants the field that tells a union's members apart to have no validator, so this is no `Section`
    _numbers = field_validator("budget", "calibration_prompts", mode="before", check_fields=False)(not_a_boolean)

    budget: float | None = Field(None, gt=0, allow_inf_nan=False)
    """What a run may spend on teachers, never more: an equal share is each silo's in each round. None: no bound."""
    unit: str = Field("USD", min_length=1, max_length=24)
    """Of prices and budget; it is only shown."""

    def share(self, parts: int) -> Fraction | None:
        """The budget of one of so many parts of a run; None: no bound."""
        return None if self.budget is None else Fraction(str(self.budget)) / parts


class _Scored(_Priced):
    """A route that scores drafts, with what all teachers write for a few prompts first."""

    calibration_prompts: int = Field(8, ge=2, le=256)
    """Prompts that every teacher answers first in each silo and round, dealt over the labels. Those drafts are kept."""
    scorer: Literal["public_model", "typicality"] = "public_model"
    """`public_model`: how sure a public model is that the draft has its label (for `generation`: of the completion).
    `typicality`: how sure the silo's own classifier is, which reads private records."""
    scorer_model: str | None = None
    """Of `public_model`. None: `student.base`."""


class CascadeRoute(_Scored):
    """Drafts by the first teacher; those that score too low are written again by the next. FrugalGPT's cascade."""

    by: Literal["cascade"]
    budget: float = Field(gt=0, allow_inf_nan=False)
    """What a run may spend on teachers, never more: an equal share is each silo's in each round."""


class SkillRoute(_Scored):
    """Each label to the teacher whose drafts of it score best."""

    by: Literal["skill"]


class LabelRoute(_Priced):
    """Each label to the teacher that the recipe says."""

    by: Literal["label"]
    teachers: dict[str, str] = Field(min_length=1)
    """Label -> a teacher's name."""


class SiloRoute(Frozen):
    """Each silo to the teacher that the recipe says."""

    by: Literal["silo"]
    teachers: dict[str, str] = Field(min_length=1)
    """Silo -> a teacher's name."""


RouteConfig = Annotated[CascadeRoute | SkillRoute | LabelRoute | SiloRoute, Field(discriminator="by")]


class TeachConfig(Section):
    """How a silo's teacher writes drafts."""

    engine: EngineConfig = TransformersConfig()
    """What the model runs on: a name, or a mapping with the `kind` and its settings. See docs/engines.md."""
    model: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (fetched from PyPI), a local folder, or a hub id."""
    adapter: str | None = None
    """A LoRA adapter for it, in peft's format: a local folder, or a hub id."""
    adapter_is_public: bool = False
    """Whether every adapter was tuned on text that is no secret of any silo's: no ε of a run accounts for that."""
    teachers: tuple[TeacherConfig, ...] = Field((), max_length=_MOST_TEACHERS)
    """Several teachers in place of `model` and `engine`; for a cascade, the cheapest first. See docs/teachers.md."""
    route: RouteConfig | None = None
    """Which of `teachers` writes what."""
    prompts_per_label: int = Field(8, ge=1)
    """Different sets of private references per silo and label (for `generation`: per silo)."""
    references_per_prompt: int = Field(3, ge=0, le=32)
    drafts_per_prompt: int = Field(4, ge=1, le=64)
    """Texts sampled from one prompt; they share its prefill."""
    keep_per_prompt: int = Field(2, ge=1)
    """Of those, how many are kept: the ones most typical of their own label."""
    max_new_tokens: int = Field(80, ge=8, le=4096)
    temperature: float = Field(0.9, gt=0, le=5)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0: off."""
    batch_rows: int = Field(64, ge=1)
    """Texts decoded together."""
    max_retries: int = Field(1, ge=0, le=10)
    """How often a prompt is sampled again while fewer than `keep_per_prompt` of its drafts fit."""
    instruction: Literal["teacher", "description"] = "teacher"
    """`teacher`: the silo's teacher words one; `description`: use the task's public description."""

    @property
    def staff(self) -> tuple[TeacherConfig, ...]:
        """Every teacher; without `teachers` the one that `model` and `engine` are."""
        own = {"model": self.model, "engine": self.engine, "adapter": self.adapter}
        return self.teachers or (TeacherConfig(name="teacher", **own),)

    @property
    def routed(self) -> CascadeRoute | SkillRoute | LabelRoute | None:
        """The route where a silo has several teachers; None where it has one."""
        return None if isinstance(self.route, SiloRoute) else self.route

    def only(self, silo: str) -> TeacherConfig:
        """A silo's teacher, where each silo has one."""
        if isinstance(self.route, SiloRoute):
            return next(one for one in self.teachers if one.name == self.route.teachers[silo])
        return self.staff[0]

    @model_validator(mode="after")
    def _teachers_and_route(self) -> TeachConfig:
        if bool(self.teachers) != (self.route is not None):
            raise ValueError("teachers and route stand together: the route says which of the teachers writes what")
        if self.route is None:
            return self
        for key in ("model", "engine", "adapter"):
            if getattr(self, key) != TeachConfig.model_fields[key].default:
                raise ValueError(f"{key} has no effect beside teachers; remove it")
        names = [one.name for one in self.teachers]
        if len(set(names)) < len(names):
            raise ValueError("two of teachers have the same name")
        if isinstance(self.route, CascadeRoute | SkillRoute) and len(names) < 2:
            raise ValueError(f"route.by: {self.route.by} needs two teachers or more")
        if isinstance(self.route, LabelRoute | SiloRoute):
            unknown = sorted(set(self.route.teachers.values()) - set(names))
            if unknown:
                raise ValueError(f"route.teachers names {unknown[0]!r}, which is none of teachers")
        if isinstance(self.route, CascadeRoute):
            for one, after in zip(self.teachers, self.teachers[1:], strict=False):
                if after.prompt_price < one.prompt_price or after.draft_price < one.draft_price:
                    raise ValueError(
                        f"teachers stand with the cheapest first in a cascade: {after.name!r} is cheaper than "
                        f"{one.name!r} before it"
                    )
            if self.teachers[-1].cost(1, 1) == 0:
                raise ValueError("a cascade needs prices: give the dearer of teachers prompt_price and draft_price")
        if self.routed and self.routed.budget is not None:
            for one in self.teachers:
                if isinstance(one.engine, OpenAIConfig) and one.engine.retries:
                    raise ValueError(
                        f"the engine of {one.name!r} needs retries: 0 where there is a budget: a request that failed "
                        "may have been billed all the same; `tutelage resume` goes on after one"
                    )
        return self
