"""What every engine must do, and that the transformers engine's shortcuts change nothing.

A new engine gets a fixture like `transformers_case` and its name in `CASES`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import CopyingTeacher, HonestTeacher
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_model
from vllm_environment import KEY, needs_vllm, vllm_server

from tutelage.configs.adapters import check_adapter
from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.records import Example
from tutelage.configs.schema import ClassificationTask, OpenAIConfig, Structure, VllmConfig
from tutelage.teachers.engines import attention
from tutelage.teachers.engines.base import Engine, Generation, Sampling
from tutelage.teachers.engines.openai import OpenAIEngine
from tutelage.teachers.engines.structure import Structured
from tutelage.teachers.engines.transformers import TransformersEngine, _draw, end_tokens
from tutelage.teachers.engines.vllm import VllmEngine
from tutelage.teachers.engines.vllm_parallel import ParallelVllm
from tutelage.teachers.prompts import STOP, example_prompt

MAIL = ClassificationTask(description="Sort mail.", labels={"ham": "wanted", "spam": "unwanted"}, text_noun="e-mail")
WORDS = [
    "act",
    "now",
    "the",
    "kernel",
    "build",
    "was",
    "late",
    "again",
    "and",
    "nobody",
    "on",
    "the",
    "list",
    "knows",
    "why",
    "it",
    "went",
    "so",
    "wrong",
]


def prompt(label: str, *numbers: int) -> str:
    shown = [Example(id=str(i), prompt=f"{WORDS[i]} {WORDS[-i - 1]} " * (i + 1), completion=label) for i in numbers]
    return example_prompt(MAIL, label, shown)


# Different lengths, not sorted by length, and one of them twice.
PROMPTS = [
    prompt("spam", 3, 7, 5),
    prompt("ham", 1),
    prompt("spam", *range(8)),
    prompt("ham", 1),
    prompt("ham", 2, 6),
]
LOOSE = Sampling(max_new_tokens=16, temperature=1.0, top_p=1.0, top_k=0, stop=STOP)
GREEDY = Sampling(max_new_tokens=16, temperature=1.0, top_p=1.0, top_k=1, stop=STOP)
NEVER = "\x00never\x00"


@dataclass(frozen=True)
class Case:
    engine: Engine
    fits: Callable[[str, str], bool]
    """Whether a text can be the answer to a prompt, of those in PROMPTS."""


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(tiny_model, batch_rows=8)


@pytest.fixture(scope="module")
def transformers_case(tiny: TransformersEngine) -> Case:
    starts = {one: naive(tiny, one, GREEDY)[0] for one in PROMPTS}
    return Case(tiny, lambda one, text: text == starts[one])


@pytest.fixture(scope="module")
def honest_case() -> Case:
    def fits(one: str, text: str) -> bool:
        spam = any(word in text for word in ("prize", "pills", "earn", "refinance"))
        return spam == one.splitlines()[-1].startswith("### spam")

    return Case(HonestTeacher(), fits)


@pytest.fixture(scope="module")
def copying_case() -> Case:
    return Case(CopyingTeacher(), lambda one, text: text.rpartition(" ")[0] in one)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads as wide as vLLM takes them."""
    return make_tiny_model(tmp_path_factory.mktemp("wide") / "model", head_dim=32)


@pytest.fixture(scope="module")
def wide_starts(wide_model: Path) -> dict[str, str]:
    """What the most likely text after each prompt is, by transformers: vLLM leaves out half a character at the end."""
    wide = TransformersEngine(wide_model, batch_rows=8)
    return {one: naive(wide, one, GREEDY)[0] for one in PROMPTS}


@pytest.fixture(scope="module")
def vllm_case(wide_model: Path, wide_starts: dict[str, str]) -> Iterator[Case]:
    with contextlib.closing(VllmEngine(wide_model, VllmConfig(kind="vllm", kv_cache_gib=1))) as engine:
        yield Case(engine, lambda one, text: text == wide_starts[one].rstrip("\ufffd"))


@pytest.fixture(scope="module")
def openai_case(wide_model: Path, wide_starts: dict[str, str]) -> Iterator[Case]:
    with vllm_server(wide_model, "wide") as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_TEST_KEY", KEY)
        engine = OpenAIEngine(wide_model, OpenAIConfig(kind="openai", url=url, key_env="TUTELAGE_TEST_KEY"), "wide")
        yield Case(engine, lambda one, text: text == wide_starts[one].rstrip("\ufffd"))


CASES = [
    "transformers_case",
    "honest_case",
    "copying_case",
    pytest.param("vllm_case", marks=needs_vllm),
    pytest.param("openai_case", marks=needs_vllm),
]


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def texts_of(written: list[list[Generation]]) -> list[list[str]]:
    return [[one.text for one in row] for row in written]


# ---- every engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 11])
def test_n_texts_for_each_prompt_in_the_order_of_the_prompts(case: Case, n: int) -> None:
    written = case.engine.generate(PROMPTS, n, GREEDY, 0)
    assert [len(row) for row in written] == [n] * len(PROMPTS)
    assert all(case.fits(one, text) for one, row in zip(PROMPTS, texts_of(written), strict=True) for text in row)


def test_the_seed_decides_the_texts(case: Case) -> None:
    first, again, other = (case.engine.generate(PROMPTS, 3, LOOSE, seed) for seed in (1, 1, 2))
    assert first == again
    assert texts_of(first) != texts_of(other)
    case.engine.generate(PROMPTS[:1], 1, LOOSE, 2**48 - 1)  # as large as write_examples draws them


def test_the_texts_of_one_prompt_differ(case: Case) -> None:
    [row] = texts_of(case.engine.generate([PROMPTS[2]], 8, LOOSE, 3))
    assert len(set(row)) > 1


def test_the_stop_string_is_never_in_a_text(case: Case) -> None:
    for row in case.engine.generate(PROMPTS, 4, LOOSE, 4):
        assert all(STOP not in one.text for one in row)


CALL = {
    "type": "object",
    "properties": {
        "tool": {"enum": ["search", "send"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "to": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["tool", "count", "to"],
    "additionalProperties": False,
}
STRUCTURES = {
    "choice": Structure(choice=("spam", "ham", "spam, perhaps")),
    "regex": Structure(regex="[0-9]{3}-(ab|c[d-f]){2}"),
    "json_schema": Structure(json_schema=CALL),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_text_has_the_structure_that_was_asked_for(case: Case, kind: str) -> None:
    sampling = replace(LOOSE, max_new_tokens=60, structure=STRUCTURES[kind])
    written = case.engine.generate(PROMPTS, 4, sampling, 10)
    assert written == case.engine.generate(PROMPTS, 4, sampling, 10)
    texts = [one for row in written for one in row]
    assert all(one.finished and STRUCTURES[kind].read(one.text) == one.text for one in texts)
    assert len({one.text for one in texts}) > 1
    assert not any(STRUCTURES[kind].read(one.text) for one in case.engine.generate(PROMPTS, 1, LOOSE, 10)[0])


def test_progress_adds_up_to_all_texts(case: Case) -> None:
    calls: list[int] = []
    case.engine.generate(PROMPTS, 3, LOOSE, 5, calls.append)
    assert sum(calls) == 3 * len(PROMPTS)
    assert min(calls) > 0


def test_no_prompts_no_texts(case: Case) -> None:
    calls: list[int] = []
    assert case.engine.generate([], 3, LOOSE, 6, calls.append) == []
    assert sum(calls) == 0


def test_length_is_bounded(case: Case) -> None:
    sampling = replace(LOOSE, max_new_tokens=40)
    for row in case.engine.generate(PROMPTS[:2], 2, sampling, 7):
        assert all(len(one.text.split()) <= 40 for one in row)


def test_tokens_are_counted_and_never_more_than_was_said_before(case: Case) -> None:
    """What a budget rests on. A double counts nothing, and is charged at its worst."""
    n, sampling = 3, replace(LOOSE, max_new_tokens=9)
    for prompt, row in zip(PROMPTS, case.engine.generate(PROMPTS, n, sampling, 7), strict=True):
        if isinstance(case.engine, HonestTeacher | CopyingTeacher):
            assert all(one.read is None and one.drawn is None for one in row)
            continue
        assert 0 < sum(one.read or 0 for one in row) <= case.engine.most_read(prompt, n)
        assert n <= sum(one.drawn or 0 for one in row) <= n * sampling.max_new_tokens


def test_a_chat_prompt_holds_both_messages_in_order(case: Case) -> None:
    chat = case.engine.chat("Be brief.", "Why is it so?\n- an example")
    assert 0 <= chat.index("Be brief.") < chat.index("Why is it so?")
    [[one]] = case.engine.generate([chat], 1, LOOSE, 8)
    assert isinstance(one, Generation)


def test_a_generation_hides_its_text_and_stays_in_the_process(case: Case) -> None:
    [[one]] = case.engine.generate(PROMPTS[:1], 1, LOOSE, 9)
    assert one.text
    for shown in (repr(one), str(one), f"{[one]}"):
        assert one.text not in shown
        assert "redacted" in shown
    with pytest.raises(PrivacyError):
        pickle.dumps(one)


# ---- tuned by an adapter ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one, large enough to change what the model says."""
    return make_adapter(wide_model, tmp_path_factory.mktemp("adapter"), "somebody/wide")


def make_adapter(model: Path, folder: Path, base: str) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(folder)
    return folder


def test_an_adapter_changes_what_is_written_as_peft_would(wide_model: Path, adapter: Path) -> None:
    from peft import PeftModel

    plain, tuned = TransformersEngine(wide_model, 8), TransformersEngine(wide_model, 8, adapter)
    written = texts_of(tuned.generate(PROMPTS, 1, GREEDY, 0))
    assert written != texts_of(plain.generate(PROMPTS, 1, GREEDY, 0))
    plain.model = PeftModel.from_pretrained(plain.model, adapter).eval()
    assert written == [[naive(plain, one, GREEDY)[0]] for one in PROMPTS]


def test_an_adapter_that_does_not_fit_is_refused(
    wide_model: Path, tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not fit"):
        TransformersEngine(tiny_model, 8, adapter)
    with pytest.raises(UserError, match="tuned on somebody/wide, not on HuggingFaceTB/SmolLM2"):
        check_adapter(str(adapter), "smollm2-135m-instruct")
    check_adapter(str(adapter), str(wide_model))  # a local folder's name says nothing
    with pytest.raises(UserError, match="holds no adapter"):
        check_adapter(str(wide_model), str(wide_model))
    with pytest.raises(UserError, match="no such adapter"):
        check_adapter("/nowhere/at/all", str(wide_model))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    shutil.copytree(adapter, tmp_path / "other")
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(UserError, match="no LoRA"):
        check_adapter(str(tmp_path / "other"), str(wide_model))


def with_vllm(test: Any) -> Any:
    for one in needs_vllm:
        test = one(test)
    return test


@with_vllm
def test_an_adapter_with_vllm_writes_what_it_writes_with_transformers(wide_model: Path, adapter: Path) -> None:
    config = VllmConfig(kind="vllm", kv_cache_gib=1, dtype="float32")
    tuned = TransformersEngine(wide_model, 8, adapter)
    expected = [[naive(tuned, one, GREEDY)[0].rstrip("\ufffd")] for one in PROMPTS]
    with contextlib.closing(VllmEngine(wide_model, config, adapter)) as engine:
        assert texts_of(engine.generate(PROMPTS, 1, GREEDY, 0)) == expected


@with_vllm
def test_processes_side_by_side_write_what_one_writes(wide_model: Path, wide_starts: dict[str, str]) -> None:
    config = VllmConfig(kind="vllm", kv_cache_gib=1, dtype="float32", data_parallel_size=2)
    counted: list[int] = []
    with (
        contextlib.closing(VllmEngine(wide_model, config)) as one,
        contextlib.closing(ParallelVllm(wide_model, config)) as several,
    ):
        written = several.generate(PROMPTS, 3, LOOSE, 1, counted.append)
        assert sum(counted) == 3 * len(PROMPTS)
        assert texts_of(several.generate(PROMPTS, 1, GREEDY, 0)) == [
            [wide_starts[each].rstrip("\ufffd")] for each in PROMPTS
        ]
        assert several.generate([], 1, GREEDY, 0) == []
        [first, second] = [engine._process for engine in several.engines]
        assert first is not None
        assert second is not None
        assert first.pid != second.pid
        os.kill(second.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="signal 9"):
            several.generate(PROMPTS, 3, LOOSE, 1)
        assert not [engine for engine in several.engines if engine._process], "both have ended"
        assert one.generate(PROMPTS, 3, LOOSE, 1) == written


# ---- the transformers engine: exact ---------------------------------------------------------------------------------


def naive(engine: TransformersEngine, text: str, sampling: Sampling) -> tuple[str, bool, int]:
    """Greedy: one prompt alone, no cache, no padding. Text, finished, and tokens sampled (the end token included)."""
    import torch

    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    own: list[int] = []
    for step in range(1, sampling.max_new_tokens + 1):
        with torch.inference_mode():
            logits = engine.model(input_ids=torch.tensor([ids + own]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token in end_tokens(engine.model, engine.tokenizer):
            return str(engine.tokenizer.decode(own, skip_special_tokens=True)), True, step
        own.append(token)
        written = str(engine.tokenizer.decode(own, skip_special_tokens=True))
        if sampling.stop in written:
            return written.split(sampling.stop)[0], True, step
    return written, False, sampling.max_new_tokens


@pytest.fixture
def many_ends(tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Makes a tenth of the vocabulary end a text, so that rows end at many different times."""
    ends = [i for i in range(3, len(tiny.tokenizer)) if i % 10 == 0]
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", ends)
    return {*ends, tiny.tokenizer.eos_token_id}


VARIED = [" ".join(WORDS[i % 7 : i % 7 + 1 + i * 5 % 11]) for i in range(24)]


@pytest.mark.parametrize("way", ["eager", "sdpa", attention.NAME])
def test_a_batch_writes_what_a_plain_loop_writes(
    tiny: TransformersEngine, many_ends: set[int], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    tiny.model.set_attn_implementation(way)  # the default comes last and stays
    expected = [naive(tiny, one, GREEDY) for one in VARIED]
    lengths = {steps for _, _, steps in expected}
    assert len(lengths) >= 5, "the rows must end at different times for this to test anything"
    assert {end for _, end, _ in expected} == {True, False}
    for batch_rows, n in [(1, 1), (4, 1), (24, 1), (7, 3), (64, 2), (2, 5)]:
        monkeypatch.setattr(tiny, "batch_rows", batch_rows)
        for (text, finished, _), row in zip(expected, tiny.generate(VARIED, n, GREEDY, 0), strict=True):
            assert row == [Generation(text, finished)] * n, (batch_rows, n)


def test_rows_that_leave_the_batch_do_not_mix_up_the_others(
    tiny: TransformersEngine, many_ends: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled from the best 2: every token of every text must be among the best 2 after its own prompt and text."""
    import torch

    kept: list[list[list[int]]] = []
    decode = tiny.tokenizer.batch_decode

    def spy(tokens: list[list[int]], **settings: Any) -> list[str]:
        kept.append([list(row) for row in tokens])
        return list(decode(tokens, **settings))

    monkeypatch.setattr(tiny.tokenizer, "batch_decode", spy)
    monkeypatch.setattr(tiny, "batch_rows", 1000)
    sampling = Sampling(max_new_tokens=16, temperature=5.0, top_p=1.0, top_k=2, stop=NEVER)
    written = tiny.generate(VARIED[:10], 4, sampling, 3)
    [tokens] = kept
    order = sorted(range(10), key=lambda i: len(tiny.tokenizer(VARIED[i])["input_ids"]))
    assert len({len(row) for row in tokens}) >= 6, "the rows must end at different times for this to test anything"
    for place, index in enumerate(order):
        ids = tiny.tokenizer(VARIED[index])["input_ids"]
        for j, own in enumerate(tokens[place * 4 : place * 4 + 4]):
            with torch.inference_mode():
                logits = tiny.model(input_ids=torch.tensor([ids + own]), use_cache=False).logits[0, len(ids) - 1 :]
            best = logits.topk(2).indices.tolist()
            assert all(token in pair for token, pair in zip(own, best, strict=False))
            ended = written[index][j].finished
            assert ended == (len(own) < 16)
            assert not ended or set(best[len(own)]) & many_ends


@pytest.mark.parametrize("kind", STRUCTURES)
def test_of_the_tokens_that_fit_the_likeliest_is_taken(
    tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As a plain loop finds it for one prompt alone, in batches whose texts end at different times."""
    import torch

    def alone(text: str) -> str:
        state = Structured(STRUCTURES[kind], tiny._structures, 1)
        ids, own = tiny.tokenizer(text, add_special_tokens=False)["input_ids"], []
        while True:
            with torch.inference_mode():
                logits = tiny.model(input_ids=torch.tensor([ids + own]), use_cache=False).logits[:, -1]
            own.append(int(state.masked(logits, [0]).argmax()))
            if own[-1] in end_tokens(tiny.model, tiny.tokenizer):
                return str(tiny.tokenizer.decode(own[:-1]))
            if state.take(0, own[-1]):
                return str(tiny.tokenizer.decode(own))

    expected = [alone(one) for one in VARIED]
    assert len({*expected}) > 1
    sampling = replace(GREEDY, max_new_tokens=60, structure=STRUCTURES[kind])
    for batch_rows, n in [(1, 1), (24, 1), (7, 3)]:
        monkeypatch.setattr(tiny, "batch_rows", batch_rows)
        assert tiny.generate(VARIED, n, sampling, 0) == [[Generation(one, True)] * n for one in expected]


def test_a_text_too_short_for_its_structure_is_not_finished(tiny: TransformersEngine) -> None:
    [row] = tiny.generate(PROMPTS[:1], 3, replace(LOOSE, max_new_tokens=5, structure=STRUCTURES["json_schema"]), 0)
    assert not any(one.finished for one in row)
    assert all(one.text.startswith('{"') for one in row)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_no_more_tokens_than_asked_for(tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    sizes: list[int] = []
    decode = tiny.tokenizer.batch_decode

    def spy(tokens: list[list[int]], **settings: Any) -> list[str]:
        sizes.extend(len(row) for row in tokens)
        return list(decode(tokens, **settings))

    monkeypatch.setattr(tiny.tokenizer, "batch_decode", spy)
    sampling = Sampling(length, 1.0, 1.0, 0, NEVER)
    written = tiny.generate(PROMPTS, 3, sampling, 0)
    assert max(sizes) == length
    assert sum(size == length for size in sizes) >= sum(not one.finished for row in written for one in row)


def scripted(
    tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch, ids: list[int], sampling: Sampling
) -> Generation:
    """What the engine makes of a given sequence of tokens."""
    import torch

    script = iter(ids)
    path = "tutelage.teachers.engines.transformers._draw"
    monkeypatch.setattr(path, lambda logits, *_: torch.full((len(logits),), next(script)))
    [[one]] = tiny.generate(["the"], 1, sampling, 0)
    assert next(script, None) is None, "it stopped before the end of the script"
    return one


def test_where_a_text_ends(tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(text: str) -> list[int]:
        return list(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])

    def run(tokens: list[int], length: int = 40) -> Generation:
        return scripted(tiny, monkeypatch, tokens, Sampling(length, 1.0, 1.0, 0, STOP))

    end, stop = tiny.tokenizer.eos_token_id, ids(STOP)
    assert len(stop) > 1  # the stop string is put together from several tokens
    hello = ids("won a prize")
    assert run([*hello, end]) == Generation("won a prize", True)
    assert run([*hello, *stop]) == Generation("won a prize", True)
    assert run([end]) == Generation("", True)
    assert run(stop) == Generation("", True)
    assert run([*hello, *stop[:-1]], len(hello) + len(stop) - 1) == Generation("won a prize\n##", False)
    # on the very last token
    assert run([*hello, end], len(hello) + 1) == Generation("won a prize", True)
    assert run([*hello, *stop], len(hello) + len(stop)) == Generation("won a prize", True)
    assert run(hello, len(hello)) == Generation("won a prize", False)
    # a special token that ends nothing is no part of the text, but stands between what is around it
    [special] = {i for i in tiny.tokenizer.all_special_ids} - {end, tiny.tokenizer.unk_token_id}
    assert run([*hello, special, *hello, end]) == Generation("won a prizewon a prize", True)
    torn = [*hello, stop[0], special, *stop[1:]]
    assert run(torn, len(torn)) == Generation("won a prize", True)


def test_a_long_stop_string_of_many_tokens(tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = "Δ END OF THE EXAMPLE Ω"
    tokens = tiny.tokenizer("so" + stop, add_special_tokens=False)["input_ids"]
    assert len(tokens) > 12
    assert scripted(tiny, monkeypatch, tokens, Sampling(60, 1.0, 1.0, 0, stop)) == Generation("so", True)


# ---- one draw -------------------------------------------------------------------------------------------------------


def generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def draws(logits: list[float], sampling: Sampling, n: int = 4000) -> Counter[int]:
    import torch

    return Counter(_draw(torch.tensor([logits]).repeat(n, 1), sampling, generator(0)).tolist())


def with_settings(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
    return Sampling(1, temperature, top_p, top_k, STOP)


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 40),
    seed=st.integers(0, 2**48 - 1),
)
def test_a_draw_stays_inside_top_k_and_top_p(
    logits: list[float], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    import torch

    rows = torch.tensor([logits]).repeat(50, 1)
    drawn = _draw(rows, with_settings(temperature, top_p, top_k), generator(seed)).tolist()
    scaled = np.array(logits) / temperature
    for token in set(drawn):
        better = [x for x in scaled if x > scaled[token] + 1e-6 * (1 + abs(x))]
        assert top_k == 0 or len(better) < top_k
        # the mass of the tokens before it, within the best k, is below top_p
        best = np.sort(scaled)[::-1][: top_k or None]
        weights = np.exp(best - best[0])
        assert sum(np.exp(x - best[0]) for x in better) / weights.sum() < top_p + 1e-5


def shares(logits: list[float], sampling: Sampling) -> np.ndarray:
    """The distribution as defined: temperature, best k, then the smallest prefix that reaches top_p."""
    scaled = np.array(logits) / sampling.temperature
    order = np.argsort(-scaled)[: sampling.top_k or None]
    p = np.exp(scaled[order] - scaled.max())
    p /= p.sum()
    p[np.cumsum(p) - p >= sampling.top_p] = 0
    full = np.zeros(len(logits))
    full[order] = p / p.sum()
    return full


@pytest.mark.parametrize(
    "sampling",
    [
        with_settings(),
        with_settings(top_k=3),
        with_settings(top_k=100),
        with_settings(top_p=0.7),
        with_settings(temperature=0.5),
        with_settings(temperature=3.0, top_p=0.8, top_k=4),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    from scipy.stats import chisquare

    logits = [0.3, 2.0, 1.1, -0.4, 1.6, 0.0]
    expected = shares(logits, sampling)
    n = 8000
    counted = draws(logits, sampling, n)
    assert set(counted) <= set(np.flatnonzero(expected))
    inside = np.flatnonzero(expected)
    if len(inside) > 1:
        assert chisquare([counted[int(i)] for i in inside], expected[inside] * n).pvalue > 1e-3


def test_limits() -> None:
    logits = [1.0, 3.0, 2.9, -50.0]
    assert set(draws(logits, with_settings(temperature=1e-6))) == {1}
    assert set(draws(logits, with_settings(top_k=1, temperature=5.0))) == {1}
    assert set(draws(logits, with_settings(top_p=1e-9))) == {1}
    hot = draws([1.0, 3.0, 2.9, -5.0], with_settings(temperature=1e6))
    assert all(abs(hot[i] / 4000 - 0.25) < 0.04 for i in range(4))
    assert set(draws([0.0, -np.inf, 0.0], with_settings())) == {0, 2}


def test_each_row_is_drawn_from_its_own_logits() -> None:
    import torch

    rows = torch.full((5, 5), -100.0).fill_diagonal_(0.0)
    assert _draw(rows, with_settings(), generator(0)).tolist() == [0, 1, 2, 3, 4]
    same = torch.zeros(64, 1000)
    assert len(set(_draw(same, with_settings(), generator(0)).tolist())) > 40


def sliding(folder: Path, source: Path, window: int) -> TransformersEngine:
    """An engine on a model whose every layer attends to `window` tokens."""
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=window, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TransformersEngine(folder, batch_rows=64)


def test_a_sliding_window_holds_every_text_that_fits_into_it(
    tiny: TransformersEngine, tiny_model: Path, tmp_path: Path
) -> None:
    longest = max(len(tiny.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in PROMPTS)
    engine = sliding(tmp_path, tiny_model, longest + GREEDY.max_new_tokens)
    # the drafts of a prompt together take more places than the window has
    written = engine.generate(PROMPTS, 11, GREEDY, 0)
    assert texts_of(written) == [[naive(engine, one, GREEDY)[0]] * 11 for one in PROMPTS]


def test_a_text_longer_than_the_model_attends_to_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    engine = sliding(tmp_path, tiny_model, 40)
    with pytest.raises(UserError, match="attends to 40") as caught:
        engine.generate(PROMPTS, 2, GREEDY, 0)
    assert "references_per_prompt" in (caught.value.remedy or "")
