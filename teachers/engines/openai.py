"""The engine for any server that speaks OpenAI's completions protocol.

Prompts are sent as the plain text that they are, `chat` included: the chat template is that of the model's own
tokenizer, rendered here, so that a prompt is the same whatever serves the model. A prompt with private references is
seen by that server, and by nothing between: no proxy of the environment is used, and no redirect followed.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.errors import UserError
from tutelage.configs.models import load_tokenizer
from tutelage.configs.schema import OpenAIConfig, Structure
from tutelage.teachers.engines.base import Generation, Sampling, chat_prompt

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses of a server that may do better in a while."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_CONNECT_S = 10.0
_MAX_BYTES_PER_TOKEN = 1_000
"""More than any answer needs, names and punctuation of JSON included."""


class OpenAIEngine:
    """Continues text by asking a server.

    Args:
        folder: The model's folder; its tokenizer is all that is read.
        config: The recipe's.
        model: The model's name there.

    Raises:
        UserError: the key's environment variable holds none.
    """

    def __init__(self, folder: Path, config: OpenAIConfig, model: str) -> None:
        self.config, self.model = config, model
        self.tokenizer = load_tokenizer(folder)
        key = read_key(config)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def chat(self, system: str, user: str) -> str:
        """See `Engine.chat`."""
        return chat_prompt(self.tokenizer, system, user)

    def most_read(self, prompt: str, n: int) -> int:
        """See `Engine.most_read`. A server may give fewer texts at a time, and read it for each."""
        return n * len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        """See `Engine.close`. Connections last no longer than `generate`."""

    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """See `Engine.generate`. The seed is a wish: servers batch requests as they come, and sums depend on it.

        Raises:
            UserError: the server cannot be reached, refuses, or answers something else.
        """
        if not prompts:
            return []
        return asyncio.run(self._generate(prompts, n, sampling, seed, on_progress or (lambda _: None)))

    async def _generate(
        self, prompts: Sequence[str], n: int, sampling: Sampling, seed: int, on_progress: Callable[[int], object]
    ) -> list[list[Generation]]:
        import httpx

        turns = asyncio.Semaphore(self.config.concurrency)
        async with httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(self.config.timeout_s, connect=min(_CONNECT_S, self.config.timeout_s), pool=None),
            limits=httpx.Limits(max_connections=self.config.concurrency),
            follow_redirects=False,
            trust_env=False,  # a proxy would see the prompts
            verify=ssl.create_default_context(),
        ) as client:

            async def one(i: int) -> list[Generation]:
                first = random.Random(f"{seed}/{i}").getrandbits(48)
                async with turns:
                    return await self._continue(client, prompts[i], n, sampling, first, on_progress)

            tasks = [asyncio.create_task(one(i)) for i in range(len(prompts))]
            try:
                return await asyncio.gather(*tasks)
            finally:  # the first that fails ends the others
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _continue(
        self,
        client: httpx.AsyncClient,
        prompt: str,
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object],
    ) -> list[Generation]:
        """`n` texts for one prompt, asked for again where a server gives fewer at a time."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": [sampling.stop],
            "stream": False,
        }
        if self.config.extensions:
            body |= {"top_k": sampling.top_k, "add_special_tokens": False}
        if sampling.structure:
            body |= _structured(sampling.structure)
        texts: list[Generation] = []
        while len(texts) < n:
            wanted = n - len(texts)
            answer = await self._post(client, {**body, "n": wanted, "seed": seed + len(texts)})
            found = _texts(answer, sampling.stop)[:wanted]
            texts += found
            on_progress(len(found))
        return texts

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        """A request's answer, sent again with growing, random waits while the server is overloaded or out of reach."""
        import httpx

        room = _MAX_BYTES_PER_TOKEN * (body["max_tokens"] + 10) * body["n"]
        for attempt in range(self.config.retries + 1):
            asked: float | None = None
            try:
                async with client.stream("POST", f"{self.config.url}/completions", json=body) as response:
                    if response.status_code == 200:
                        return await _json(response, room)
                    if response.status_code not in _PASSING:
                        raise self._refused(response.status_code)
                    problem, asked = f"it answers {response.status_code}", retry_after(response.headers)
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = type(error).__name__
            wait = pause(attempt, asked)
            if attempt == self.config.retries or wait > max(2 * _LONGEST_WAIT_S, self.config.timeout_s):
                break
            await asyncio.sleep(wait)
        raise UserError(
            f"the endpoint gives no text ({problem}; asked {attempt + 1} times)", key="teach.engine.url",
            remedy="see that it runs and is reached from here; if it is overloaded, lower teach.engine.concurrency",
        )  # fmt: skip

    def _refused(self, status: int) -> UserError:
        """What a status means. The server's own words are not repeated: they may quote the prompt or the key."""
        key = self.config.key_env
        if status in (401, 403):
            with_key = f"the key in {key}" if key else "a request without a key: name its variable in key_env"
            return UserError(f"the endpoint refuses {with_key} ({status})", key="teach.engine.key_env")
        if 300 <= status < 400:
            return UserError(
                f"the endpoint wants to send prompts elsewhere ({status})", key="teach.engine.url",
                remedy="give the address that it leads to, if that is to be trusted",
            )  # fmt: skip
        if status == 404:
            return UserError(
                "the endpoint has no such model, or is none (404)", key="teach.engine",
                remedy="check url (it ends in /v1, mostly) and model",
            )  # fmt: skip
        return UserError(
            f"the endpoint refuses the request ({status}): too long, most likely, or a setting it does not know",
            key="teach.engine",
            remedy="lower teach.references_per_prompt, teach.max_new_tokens or data.max_chars; or extensions: false",
        )


def _structured(structure: Structure) -> dict[str, Any]:
    """What a request says of the answer's structure: vLLM's own words where OpenAI's protocol has none."""
    if structure.json_schema is None:
        return {"structured_outputs": structure.model_dump(exclude_none=True)}
    schema = {"name": "completion", "schema": structure.json_schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def read_key(config: OpenAIConfig) -> str | None:
    """The key from its environment variable; None where the recipe names none.

    Raises:
        UserError: there is none in it, or something that cannot be one.
    """
    if config.key_env is None:
        return None
    key = os.environ.get(config.key_env, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"the environment variable {config.key_env} " + ("holds no key" if key else "is not set"),
            key="teach.engine.key_env", remedy=f"export {config.key_env}=...",
        )  # fmt: skip
    return key


def pause(attempt: int, asked: float | None) -> float:
    """Seconds before the next attempt: what the server asks for, and a random part that doubles each time.

    Random, so that requests that were refused together do not come back together.
    """
    growing = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
    return (asked or 0.0) + random.uniform(growing / 2, growing)


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that a server asks to wait (RFC 9110, 10.2.3), given as such or as a date; None: it doesn't say."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal() and value.isascii():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def _json(response: httpx.Response, room: int) -> Any:
    data = bytearray()
    async for part in response.aiter_bytes():
        data += part
        if len(data) > room:
            raise _odd("more text than was asked for")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _odd("no JSON") from None


def _texts(answer: Any, stop: str) -> list[Generation]:
    """The texts of an answer, cut at the stop string, for not every server does."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _odd("no choices")
    read, drawn = _usage(answer)
    texts = []
    for i, choice in enumerate(choices):
        text = choice.get("text") if isinstance(choice, dict) else None
        if not isinstance(text, str):
            raise _odd("a choice without text")
        before, found, _ = text.partition(stop)
        # a server tells the sum of all its texts
        tokens = (None, None) if read is None or drawn is None else (0 if i else read, 0 if i else drawn)
        texts.append(Generation(before, bool(found) or choice.get("finish_reason") == "stop", *tokens))
    return texts


def _usage(answer: dict[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of prompt and texts, as the server bills them; None where it doesn't say."""
    usage = answer.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    read, drawn = (one if type(one) is int and one >= 0 else None for one in counts)
    return read, drawn


def _odd(what: str) -> UserError:
    return UserError(
        f"the endpoint answers something else than OpenAI's completions ({what})",
        key="teach.engine.url", remedy="check that it serves /completions, not only /chat/completions",
    )  # fmt: skip
