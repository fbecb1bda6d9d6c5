"""What a teacher's model may run on."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from tutelage.configs.records import Frozen
from tutelage.configs.schema.section import not_a_boolean


class TransformersConfig(Frozen):
    """The model runs in the run's own process."""

    kind: Literal["transformers"] = "transformers"


class VllmConfig(Frozen):
    """vLLM, offline, in a process of its own that a silo's teacher begins and ends: `make vllm` builds what it needs.

    Which Python runs it is no matter of the recipe, for a silo may have the recipe from elsewhere: `$TUTELAGE_VLLM`.
    """

    # pydantic wants the field that tells a union's members apart to have no validator, so this is no `Section`
    _numbers = field_validator(
        "max_model_len",
        "tensor_parallel_size",
        "data_parallel_size",
        "gpu_memory_utilization",
        "kv_cache_gib",
        "start_timeout_s",
        "timeout_s",
        mode="before",
    )(not_a_boolean)

    kind: Literal["vllm"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the model is stored, and float32 where a processor does not compute in bfloat16."""
    max_model_len: int | None = Field(None, ge=16)
    """Most tokens of a prompt and its draft. None: what the model attends to."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """GPUs that share the model."""
    data_parallel_size: int = Field(1, ge=1, le=64)
    """Processes side by side, each with a copy of the model and as many GPUs as `tensor_parallel_size` says."""
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
    timeout_s: int = Field(600, ge=1)
    """How long it may be silent while texts are due: it says after every step, a token of all texts, that it lives."""


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
