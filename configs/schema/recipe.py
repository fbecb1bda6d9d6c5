"""A whole recipe, and what must agree in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tutelage.configs.records import Frozen
from tutelage.configs.schema.data import (
    ClassificationTask,
    DataConfig,
    FileData,
    GenerationTask,
    SpamAssassinData,
    Task,
)
from tutelage.configs.schema.engines import EngineConfig, OpenAIConfig, VllmConfig
from tutelage.configs.schema.privacy import (
    FormalPrivacy,
    PrivacyConfig,
    PrivateEvolutionPrivacy,
    PrivatePredictionPrivacy,
    ScreenConfig,
    Screened,
)
from tutelage.configs.schema.section import Section
from tutelage.configs.schema.structure import Structure
from tutelage.configs.schema.student import AttackConfig, GateConfig, MeasureConfig, StudentConfig
from tutelage.configs.schema.teach import CascadeRoute, LabelRoute, SiloRoute, SkillRoute, TeachConfig, TeacherConfig


class AggregateConfig(Section):
    """How several silos' lessons become one set, the same number per class."""

    method: Literal["random", "vote"] = "vote"
    lessons_per_class: int = Field(48, ge=2)


class SiloKeys(Frozen):
    """The public halves of a silo's keys, as `tutelage silo init` prints them."""

    signing: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Ed25519, hex: what it hands over is signed with it."""
    sealing: str = Field(pattern=r"^[0-9a-f]{64}$")
    """X25519, hex: what is for nobody but this silo is sealed to it."""


class FederationConfig(Section):
    """Silos that are elsewhere, each with its own records, worker, budget and key: see docs/federation.md."""

    exchange: str = Field(min_length=1)
    """Folder or object storage (`/srv/exchange`, `s3://bucket/folder`) that the silos and this run can reach."""
    silos: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")], SiloKeys] = Field(min_length=1)
    """Silo -> its public keys. Nothing counts that another key has signed."""
    patience_s: int = Field(86_400, ge=1)
    """How long a silo may take for its part of a step."""


class Recipe(Section):
    """One run: everything that decides its result."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seeds sampling and training. Canary coins and keys come from the operating system instead."""
    rounds: int = Field(1, ge=1, le=100)
    task: Task
    data: DataConfig = DataConfig()
    teach: TeachConfig = TeachConfig()
    privacy: PrivacyConfig = Screened()
    screen: ScreenConfig = ScreenConfig()
    aggregate: AggregateConfig = AggregateConfig()
    student: StudentConfig = StudentConfig()
    measure: MeasureConfig = MeasureConfig()
    attack: AttackConfig = AttackConfig()
    gate: GateConfig
    federation: FederationConfig | None = None
    """None: the silos are dealt out of `data.records` and taught here."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.teach.keep_per_prompt > self.teach.drafts_per_prompt:
            raise ValueError("teach.keep_per_prompt is larger than teach.drafts_per_prompt")
        if isinstance(self.data.records, SpamAssassinData) and not (
            isinstance(self.task, ClassificationTask) and set(self.task.labels) == {"ham", "spam"}
        ):
            raise ValueError("task must be a classification with the labels 'ham' and 'spam' for this data")
        if isinstance(self.privacy, FormalPrivacy):
            self._check_formal(self.privacy)
        for teacher in self.teach.staff:
            self.check_teacher(teacher)
        self._check_route()
        if self.federation:
            self._check_federated()
        return self

    def check_teacher(self, teacher: TeacherConfig) -> None:
        """Refuse a teacher whose engine can't do what this recipe asks of it.

        Raises:
            ValueError: it can't.
        """
        engine, adapter = teacher.engine, teacher.adapter
        if isinstance(self.privacy, PrivatePredictionPrivacy):
            _check_private(engine)
            if isinstance(engine, VllmConfig) and adapter:
                raise ValueError("teach.adapter needs teach.engine transformers under private_prediction")
        if isinstance(engine, OpenAIConfig) and not engine.extensions and self.teach.top_k:
            raise ValueError("teach.top_k must be 0 where teach.engine.extensions is false")
        if isinstance(engine, OpenAIConfig) and adapter:
            raise ValueError(
                "teach.adapter is loaded by the server where teach.engine is openai: remove it, and give the name that "
                "the server has for it as teach.engine.model"
            )
        structure = self.structure
        if structure and isinstance(engine, OpenAIConfig) and not engine.extensions and structure.json_schema is None:
            raise ValueError(
                "task.completion must be a json_schema where teach.engine.extensions is false: "
                "OpenAI's protocol has neither choice nor regex"
            )

    def _check_route(self) -> None:
        route, formal = self.teach.route, self.formal
        if route is None:
            return
        labels = set(self.task.labels) if isinstance(self.task, ClassificationTask) else set()
        if isinstance(route, SiloRoute):
            if self.federation:
                self.check_silos(list(self.federation.silos))
            return
        if isinstance(formal, PrivatePredictionPrivacy):
            raise ValueError(
                f"teach.route.by: {route.by} cannot stand beside private_prediction: every text of a batch is drawn "
                "over the same units by one model, and another would read those units again; route by silo, or take "
                "private_evolution"
            )
        if formal and formal.brackets:
            raise ValueError(
                f"privacy.brackets must be [] with teach.route.by: {route.by}: the same work at another ε would spend "
                "the budget once more, on texts that never leave the vault"
            )
        if isinstance(route, LabelRoute) and set(route.teachers) != labels:
            raise ValueError("teach.route.teachers must name a teacher for every label of the task, and for no other")
        if isinstance(route, SkillRoute) and not labels:
            raise ValueError("teach.route.by: skill needs labels to route; take a cascade for a generation task")
        if isinstance(route, CascadeRoute | SkillRoute):
            if route.scorer == "typicality" and (formal or not labels):
                raise ValueError(
                    "teach.route.scorer is typicality, which reads private records "
                    + ("and is paid for by no budget of ε" if formal else "and their labels, which this task has not")
                    + ": take public_model"
                )
            self._check_budget(route)

    def _check_budget(self, route: CascadeRoute | SkillRoute) -> None:
        """Refuse a budget that covers not even the calibration's drafts, at their full length."""
        silos = len(self.federation.silos) if self.federation else self.data.silos
        share = route.share(silos * self.rounds)
        drafts = route.calibration_prompts * self.drafts_per_prompt
        least = sum(one.cost(0, drafts * self.teach.max_new_tokens) for one in self.teach.teachers)
        if share is not None and share < least:
            raise ValueError(
                f"teach.route.budget gives each of {silos} silos {float(share):.3g} {route.unit} a round, and the "
                f"calibration's drafts alone may take {float(least):.3g}: raise it, or lower "
                "teach.route.calibration_prompts"
            )

    def check_silos(self, silos: Sequence[str]) -> None:
        """Refuse a route by silo that does not name exactly the silos that there are.

        Raises:
            ValueError: it doesn't.
        """
        route = self.teach.route
        if isinstance(route, SiloRoute) and set(route.teachers) != set(silos):
            raise ValueError("teach.route.teachers must name a teacher for every silo, and for no other")

    @property
    def drafts_per_prompt(self) -> int:
        """Drafts that are asked for with one prompt."""
        return self.teach.drafts_per_prompt if self.formal is None else 1

    @property
    def drafts_per_round(self) -> int:
        """Drafts that a silo's teacher is asked for in a round, those sampled again aside."""
        labels = len(self.task.labels) if isinstance(self.task, ClassificationTask) else 1
        if isinstance(self.privacy, PrivateEvolutionPrivacy):
            parents = self.privacy.candidates_per_label // 2
            return labels * (parents + self.privacy.iterations * (self.privacy.candidates_per_label - parents))
        return labels * self.teach.prompts_per_label * self.teach.drafts_per_prompt

    def _check_federated(self) -> None:
        if self.measure.originals:
            raise ValueError(
                "measure.originals must be false where silos are elsewhere: no place has all of their records"
            )
        if self.formal and self.formal.brackets:
            raise ValueError(
                "privacy.brackets must be [] where silos are elsewhere: what is written at another ε never leaves them"
            )
        if self.formal and any(rule.metric.startswith("overlap.") for rule in self.gate.rules):
            raise ValueError(
                "gate.rules cannot ask for overlap.* where silos are elsewhere and promise an ε: "
                "those figures are not protected by it and stay with the silos"
            )

    def _check_formal(self, privacy: FormalPrivacy) -> None:
        if privacy.epsilon in privacy.brackets or len(set(privacy.brackets)) < len(privacy.brackets):
            raise ValueError("privacy.brackets must differ from each other and from privacy.epsilon")
        if not self.screen.compare:
            raise ValueError(
                "screen.compare is of use to screened teachers only: under a formal mechanism drafts are not compared "
                "with records; remove it"
            )
        evolution = isinstance(privacy, PrivateEvolutionPrivacy)
        if any(one.adapter for one in self.teach.staff) and not self.teach.adapter_is_public:
            raise ValueError(
                "teach.adapter may have been tuned on a silo's records, and then no ε holds: if it was tuned on public "
                "text alone, say teach.adapter_is_public: true"
            )
        if self.structure and not evolution:
            raise ValueError(
                "task.completion is not kept to by private_prediction, which draws prompt and completion as one text: "
                "remove it, or take private_evolution"
            )
        for key in _ONLY_SCREENED if not evolution else [key for key in _ONLY_SCREENED if key != "top_p"]:
            if getattr(self.teach, key) != TeachConfig.model_fields[key].default:
                raise ValueError(
                    f"teach.{key} is of use to screened teachers only: under a formal mechanism a text is drawn once, "
                    "from prompts of one record each; remove it"
                )
        if isinstance(privacy, PrivateEvolutionPrivacy) and self.teach.prompts_per_label > privacy.candidates_per_label:
            raise ValueError("teach.prompts_per_label is larger than privacy.candidates_per_label")
        if "one_run" in self.attack.run and self.attack.canary_copies > 1:
            raise ValueError(
                "attack.canary_copies must be 1 where attack.run has one_run: it measures the ε of a single record"
            )
        if privacy.unit == "owner" and self._owner_column is None and self.federation is None:
            raise ValueError("privacy.unit is owner, but data.records.columns.owner names no column")

    @property
    def _owner_column(self) -> str | None:
        source = self.data.records
        return source.columns.owner if isinstance(source, FileData) else None

    @property
    def structure(self) -> Structure | None:
        """What every completion must be; None: any text, or a label."""
        return self.task.completion if isinstance(self.task, GenerationTask) else None

    @property
    def min_records_per_label(self) -> int:
        """Fewest records of a label (for `generation`: in all) that a silo can teach from."""
        return 1 if self.formal else self.teach.references_per_prompt + 1

    @property
    def defended(self) -> bool:
        """Whether anything keeps a silo's records out of its lessons: a formal mechanism, or the comparison."""
        return self.formal is not None or self.screen.compare

    @property
    def embeds_records(self) -> bool:
        """Whether anything compares meanings with the silos' records: screening, votes, or a rule of the gate."""
        asked = any(rule.metric == "overlap.cosine_max" for rule in self.gate.rules)
        evolves = isinstance(self.privacy, PrivateEvolutionPrivacy)
        return self.formal is None or evolves or self.aggregate.method == "vote" or asked

    @property
    def formal(self) -> PrivatePredictionPrivacy | PrivateEvolutionPrivacy | None:
        """The privacy section where it promises an ε; None where lessons are screened only."""
        return None if isinstance(self.privacy, Screened) else self.privacy


def _check_private(engine: EngineConfig) -> None:
    if isinstance(engine, OpenAIConfig):
        raise ValueError(
            "teach.engine is openai, which does not give the scores of every token: "
            "private_prediction needs transformers or vllm; private_evolution does with any engine"
        )
    if isinstance(engine, VllmConfig) and engine.data_parallel_size > 1:
        raise ValueError("teach.engine.data_parallel_size must be 1 under private_prediction")
    if isinstance(engine, VllmConfig) and engine.tensor_parallel_size > 1:
        raise ValueError(
            "teach.engine.tensor_parallel_size must be 1 under private_prediction: "
            "vLLM would draw in other processes, where nothing sees that the rows of a batch are together"
        )
    if isinstance(engine, VllmConfig) and engine.quantization is not None:
        raise ValueError(
            "teach.engine.quantization must be null under private_prediction: "
            "in a quantised model one record's row can move the scores of another's"
        )


_ONLY_SCREENED = (
    "references_per_prompt",
    "drafts_per_prompt",
    "keep_per_prompt",
    "max_retries",
    "top_p",
    "instruction",
)
"""Keys of `teach` that only screened teachers read."""
