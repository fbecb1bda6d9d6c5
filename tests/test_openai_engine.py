"""What the openai engine does when its server is busy, gone, odd or hostile: a small real HTTP server on loopback.

What it writes with a real vLLM server is in test_engines.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tutelage.configs.errors import UserError
from tutelage.configs.schema import OpenAIConfig, Structure
from tutelage.teachers.engines import openai
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.openai import OpenAIEngine, pause, retry_after

SECRET = "zebra-quokka-17"
KEY = "sk-not-to-be-seen"
SAMPLING = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, top_k=5, stop="\n###")

Answer = tuple[int, dict[str, str], bytes]
Reply = Callable[[dict[str, Any]], Answer]


def said(*texts: str, reason: str = "stop") -> Answer:
    choices = [{"index": i, "text": text, "finish_reason": reason} for i, text in enumerate(texts)]
    return 200, {}, json.dumps({"choices": choices}).encode()


def honest(body: dict[str, Any]) -> Answer:
    return said(*(f"{body['prompt']} {body['seed'] + j}" for j in range(body["n"])))


class Served:
    """What was asked of the server, and when."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at: list[float] = []
        self.most_at_once = 0
        self.url = ""


@contextmanager
def server(reply: Reply) -> Iterator[Served]:
    served, lock, running = Served(), threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running += 1
                served.most_at_once = max(served.most_at_once, running)
                served.bodies.append(body)
                served.headers.append(dict(self.headers))
                served.paths.append(self.path)
                served.at.append(time.monotonic())
            try:
                status, headers, data = reply(body)
            finally:
                with lock:
                    running -= 1
            if status == 0:  # hang up
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # whoever asked has heard enough
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("TUTELAGE_TEST_KEY", KEY)


def engine(model: Path, url: str, **changes: Any) -> OpenAIEngine:
    settings = {"kind": "openai", "url": url, "key_env": "TUTELAGE_TEST_KEY", **changes}
    return OpenAIEngine(model, OpenAIConfig.model_validate(settings), "the-model")


def refusal(model: Path, reply: Reply, **changes: Any) -> tuple[UserError, Served]:
    """The error that an answer leads to. No private word and no key is in it, however it is shown."""
    with server(reply) as served, pytest.raises(UserError) as caught:
        engine(model, served.url, **changes).generate([f"my {SECRET}"], 2, SAMPLING, 0)
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.remedy) + repr(caught.value)
    assert SECRET not in shown
    assert KEY not in shown
    return caught.value, served


def flaky(failures: list[Answer]) -> Reply:
    left = list(failures)
    return lambda body: left.pop(0) if left else honest(body)


# ---- what is billed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 11}, (14, 22)),  # two at a time: two requests for three texts
        ({"prompt_tokens": 7}, None),
        ({"prompt_tokens": -7, "completion_tokens": 11}, None),
        ({"prompt_tokens": True, "completion_tokens": "11"}, None),
        ("much", None),
        (None, None),
    ],
)
def test_tokens_are_those_that_the_server_bills_request_by_request(
    tiny_model: Path, usage: Any, billed: tuple[int, int] | None
) -> None:
    def two_at_a_time(body: dict[str, Any]) -> Answer:
        choices = [{"text": "so", "finish_reason": "stop"}] * min(2, body["n"])
        return 200, {}, json.dumps({"choices": choices, "usage": usage}).encode()

    with server(two_at_a_time) as served:
        made = engine(tiny_model, served.url)
        [row] = made.generate(["the report"], 3, SAMPLING, 0)
    read, drawn = [one.read for one in row], [one.drawn for one in row]
    if billed is None:
        assert read == drawn == [None] * 3
    else:
        assert (sum(one or 0 for one in read), sum(one or 0 for one in drawn)) == billed
    assert made.most_read("the report", 3) == 3 * len(made.tokenizer("the report")["input_ids"])


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_what_a_request_says(tiny_model: Path) -> None:
    with server(honest) as served:
        one = engine(tiny_model, served.url)
        written = one.generate(["a", "b", "a"], 2, SAMPLING, 7)
        again = one.generate(["a", "b", "a"], 2, SAMPLING, 7)
        other = one.generate(["a", "b", "a"], 2, SAMPLING, 8)
    assert written == again
    assert written != other
    assert [row[0].text[0] for row in written] == ["a", "b", "a"]
    assert len({text.text for row in written for text in row}) == 6, "every text has a seed of its own"
    body = served.bodies[0]
    sent = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "stop": ["\n###"], "n": 2, "stream": False}
    assert {**body, **sent, "model": "the-model"} == body
    assert body["add_special_tokens"] is False
    assert set(served.paths) == {"/v1/completions"}
    assert {headers["Authorization"] for headers in served.headers} == {f"Bearer {KEY}"}


def test_without_extensions_only_what_the_protocol_has_is_sent(tiny_model: Path) -> None:
    with server(honest) as served:
        engine(tiny_model, served.url, extensions=False, key_env=None).generate(["a"], 1, SAMPLING, 0)
    assert not {"top_k", "add_special_tokens"} & served.bodies[0].keys()
    assert "Authorization" not in served.headers[0]


def test_what_a_request_says_of_structure(tiny_model: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with server(honest) as served:
        one = engine(tiny_model, served.url)
        for given in ({"json_schema": schema}, {"choice": ("a", "b")}, {"regex": "a+"}):
            one.generate(["a"], 1, replace(SAMPLING, structure=Structure(**given)), 0)
    by_schema, by_choice, by_regex = served.bodies
    assert by_schema["response_format"]["type"] == "json_schema"
    assert by_schema["response_format"]["json_schema"]["schema"] == schema
    assert by_choice["structured_outputs"] == {"choice": ["a", "b"]}
    assert by_regex["structured_outputs"] == {"regex": "a+"}
    assert "structured_outputs" not in by_schema
    assert not {"response_format"} & {*by_choice, *by_regex}


def test_a_server_that_gives_one_text_at_a_time_is_asked_again(tiny_model: Path) -> None:
    counted: list[int] = []
    with server(lambda body: said(f"{body['seed']}")) as served:
        [row] = engine(tiny_model, served.url).generate(["a"], 3, SAMPLING, 0, counted.append)
    assert len({one.text for one in row}) == 3
    assert [body["n"] for body in served.bodies] == [3, 2, 1]
    assert sum(counted) == 3


def test_a_text_is_cut_at_the_stop_string_and_says_whether_it_ended(tiny_model: Path) -> None:
    answers = iter([said("so\n### more", "long", reason="length"), said("ended", "", reason="stop")])
    with server(lambda _: next(answers)) as served:
        one = engine(tiny_model, served.url)
        rows = [one.generate(["a"], 2, SAMPLING, 0)[0] for _ in range(2)]
    assert [(text.text, text.finished) for row in rows for text in row] == [
        ("so", True),
        ("long", False),
        ("ended", True),
        ("", True),
    ]


def test_no_more_requests_at_a_time_than_allowed(tiny_model: Path) -> None:
    def slow(body: dict[str, Any]) -> Answer:
        time.sleep(0.05)
        return honest(body)

    with server(slow) as served:
        written = engine(tiny_model, served.url, concurrency=3).generate([str(i) for i in range(20)], 1, SAMPLING, 0)
    assert [row[0].text.split()[0] for row in written] == [str(i) for i in range(20)]
    assert served.most_at_once == 3


# ---- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 0], ids=str)
def test_trouble_that_passes_is_waited_for(tiny_model: Path, status: int) -> None:
    with server(flaky([(status, {}, b"busy")] * 2)) as served:
        [[one]] = engine(tiny_model, served.url).generate(["a"], 1, SAMPLING, 0)
    assert one.text.startswith("a ")
    assert len(served.bodies) == 3
    assert served.bodies[0] == served.bodies[2]


def test_a_server_says_how_long_to_wait(tiny_model: Path) -> None:
    with server(flaky([(429, {"Retry-After": "1"}, b"")])) as served:
        engine(tiny_model, served.url).generate(["a"], 1, SAMPLING, 0)
    assert served.at[1] - served.at[0] >= 1.0


def test_it_gives_up_at_last(tiny_model: Path) -> None:
    error, served = refusal(tiny_model, lambda body: (503, {}, body["prompt"].encode()), retries=2)
    assert len(served.bodies) == 3
    assert "503" in error.problem
    assert "3 times" in error.problem


def test_a_server_that_wants_hours_is_not_waited_for(tiny_model: Path) -> None:
    _, served = refusal(tiny_model, lambda _: (429, {"Retry-After": "100000"}, b""), retries=5)
    assert len(served.bodies) == 1


def test_nobody_there(tiny_model: Path) -> None:
    with server(honest) as served:
        url = served.url
    with pytest.raises(UserError, match="ConnectError") as caught:
        engine(tiny_model, url, retries=1).generate([SECRET], 1, SAMPLING, 0)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_never_answers(tiny_model: Path) -> None:
    gone = threading.Event()

    def never(body: dict[str, Any]) -> Answer:
        gone.wait(5)
        return honest(body)

    error, _ = refusal(tiny_model, never, timeout_s=0.2, retries=1)
    gone.set()
    assert "ReadTimeout" in error.problem


@pytest.mark.parametrize(
    ("status", "key", "names"),
    [
        (400, "teach.engine", "too long"),
        (401, "teach.engine.key_env", "TUTELAGE_TEST_KEY"),
        (403, "teach.engine.key_env", "TUTELAGE_TEST_KEY"),
        (404, "teach.engine", "no such model"),
        (422, "teach.engine", "a setting it does not know"),
        (302, "teach.engine.url", "elsewhere"),
    ],
)
def test_a_refusal_is_final_and_not_quoted(tiny_model: Path, status: int, key: str, names: str) -> None:
    def no(body: dict[str, Any]) -> Answer:
        return status, {"Location": "http://127.0.0.1:9/v1/completions"}, json.dumps(body).encode()

    error, served = refusal(tiny_model, no)
    assert len(served.bodies) == 1
    assert error.key == key
    assert names in error.problem


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": {"content": "chat"}}]}',
        b'{"choices": [{"text": 7}]}',
        b'{"choices": {"text": "a"}}',
        b"[" * 100_000,
        b'{"choices": [{"text": "' + b"a" * 200_000 + b'"}]}',
    ],
    ids=range(11),
)
def test_what_is_no_completion_is_refused(tiny_model: Path, data: bytes) -> None:
    error, _ = refusal(tiny_model, lambda _: (200, {}, data))
    assert "something else" in error.problem


def test_one_failure_ends_all_requests(tiny_model: Path) -> None:
    def one_fails(body: dict[str, Any]) -> Answer:
        if body["prompt"] == "0":
            return 400, {}, b""
        time.sleep(0.02)
        return honest(body)

    with server(one_fails) as served, pytest.raises(UserError):
        engine(tiny_model, served.url, concurrency=2).generate([str(i) for i in range(50)], 1, SAMPLING, 0)
    assert len(served.bodies) < 10


# ---- secrets --------------------------------------------------------------------------------------------------------


def test_no_key_and_no_prompt_in_any_log(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), server(flaky([(500, {}, b"")])) as served:
        one = engine(tiny_model, served.url)
        one.generate([SECRET], 1, SAMPLING, 0)
    assert KEY not in caplog.text + repr(one) + str(one.config)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("key", ["", "two words", "ключ", "line\nfeed"])
def test_what_cannot_be_a_key(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TUTELAGE_TEST_KEY", key)
    with pytest.raises(UserError, match="TUTELAGE_TEST_KEY") as caught:
        engine(tiny_model, "http://127.0.0.1:9/v1")
    assert not key or key not in str(caught.value)


def test_a_proxy_of_the_environment_is_not_used(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(honest) as served, server(honest) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        engine(tiny_model, served.url).generate(["a"], 1, SAMPLING, 0)
    assert (len(served.bodies), len(proxy.bodies)) == (1, 0)


# ---- waiting --------------------------------------------------------------------------------------------------------


def test_pauses_grow_differ_and_keep_to_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_FIRST_WAIT_S", 1.0)
    for attempt in range(12):
        drawn = [pause(attempt, None) for _ in range(200)]
        most = min(60.0, 2.0**attempt)
        assert most / 2 <= min(drawn) < max(drawn) <= most
    assert 30 <= pause(0, 30.0) <= 31


def test_retry_after_as_seconds_or_date() -> None:
    import httpx

    def of(value: str) -> float | None:
        return retry_after(httpx.Headers({"Retry-After": value}))

    assert of("7") == 7.0
    soon = of(formatdate(time.time() + 30, usegmt=True))
    assert soon is not None
    assert 28 <= soon <= 31
    assert of(formatdate(time.time() - 30, usegmt=True)) == 0.0
    for odd in ("", "soon", "-3", "1e9", "nan"):
        assert of(odd) is None
    assert retry_after(httpx.Headers()) is None
