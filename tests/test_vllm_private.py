"""Private prediction with vLLM: the same texts as with transformers, and nothing moved but what may be."""

from __future__ import annotations

import contextlib
import json
import math
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from private_batches import MAILS, STOP, batches, mechanism, publics, shown, write
from scipy.stats import chi2_contingency
from tiny_model import make_tiny_model
from vllm_environment import needs_vllm, played_by

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import load_model, resolve_model
from tutelage.configs.schema import VllmConfig
from tutelage.privacy.ledger import Internal
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines import vllm_process
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.engines.private import Batch, Member, Public
from tutelage.teachers.engines.vllm import VllmEngine, vllm_python
from tutelage.teachers.engines.vllm_private import VllmDecoder

TAIL_TOKENS = 70


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads as wide as vLLM takes them."""
    return make_tiny_model(tmp_path_factory.mktemp("wide") / "model", head_dim=32)


@pytest.fixture(scope="module")
def loaded(wide_model: Path) -> tuple[Any, Any]:
    return load_model(wide_model, dtype="float32")


@pytest.fixture(scope="module")
def decoder(wide_model: Path) -> Iterator[VllmDecoder]:
    with contextlib.closing(VllmEngine(wide_model, VllmConfig(kind="vllm", dtype="float32", kv_cache_gib=1))) as engine:
        yield engine.decoder(TAIL_TOKENS)


class Claims:
    """An allowance that remembers what was asked of it."""

    def __init__(self, refused: int | None = None) -> None:
        self.parts: list[int] = []
        self.refused = refused

    def claim(self, event: dp.DpEvent, parts: Iterable[int]) -> None:
        parts = list(parts)
        if self.refused in parts:
            raise PrivacyError("refused")
        self.parts += parts


# ---- without vLLM ---------------------------------------------------------------------------------------------------

_HELLO = 'send({"ready": {"max_model_len": 9}})\nasked = receive()["write"]\n'


def test_nothing_crosses_before_it_is_claimed(tiny_model: Path, tmp_path: Path) -> None:
    """And of what there is no room for, nothing is claimed."""
    program = f"""{_HELLO}
send({{"room": 2}})
first = receive()["batches"]
assert [key for key, _ in first] == [0, 1]
send({{"written": 1, "texts": [["one", True], ["two", False]]}})
send({{"room": 1}})
second = receive()["batches"]
send({{"written": 0, "texts": [["three", True]] * 2}})
send({{"written": second[0][0], "texts": [["four", True]] * 2}})
send({{"room": 2}})
assert receive() == {{"batches": []}}
send({{"done": True}})
time.sleep(60)
"""
    claims, told = Claims(), []
    with played_by(program, tiny_model, tmp_path) as engine:
        work = [Batch(10 + one.part, one.members) for one in batches(3)]
        found = engine.decoder(TAIL_TOKENS).write(
            publics(), work, mechanism(), claims, stop=STOP, on_written=lambda part, _: told.append(part)
        )
    assert claims.parts == [10, 11, 12]
    assert told == [11, 10, 12]
    assert [[text for text, _ in row] for row in shown(found)] == [["three"] * 2, ["one", "two"], ["four"] * 2]


def test_what_may_not_be_claimed_does_not_cross(tiny_model: Path, tmp_path: Path) -> None:
    got = tmp_path / "got"
    program = f"""{_HELLO}
for _ in range(4):
    send({{"room": 1}})
    [[key, members]] = receive()["batches"]
    with open({str(got)!r}, "a") as file:
        file.write(f"{{key}} ")
    send({{"written": key, "texts": [["so", True]] * 2}})
"""
    told: list[int] = []
    with played_by(program, tiny_model, tmp_path) as engine, pytest.raises(PrivacyError, match="refused"):
        engine.decoder(TAIL_TOKENS).write(
            publics(), batches(4), mechanism(), Claims(2), stop=STOP, on_written=lambda part, _: told.append(part)
        )
    assert told == [0, 1]
    assert got.read_text() == "0 1 "


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ('{"failed": "Torn"}', PrivacyError, "did not keep the rows of a batch together"),
        ('{"failed": "RuntimeError"}', UserError, "vLLM failed with RuntimeError"),
        ('{"no_room": 4096}', UserError, "no room for the 4096 tokens of one batch"),
        ('{"too_long": [99, 64]}', UserError, "take 99 tokens; the model attends to 64"),
    ],
)
def test_what_it_says_when_it_fails(
    tiny_model: Path, tmp_path: Path, answer: str, error: type[Exception], words: str
) -> None:
    """Nothing is kept of what was being written, and nothing of it is told."""
    program = f'{_HELLO}send({{"room": 2}})\nreceive()\nsend({answer})\ntime.sleep(60)'
    told: list[int] = []
    with played_by(program, tiny_model, tmp_path) as engine:
        with pytest.raises(error, match=words) as caught:
            engine.decoder(TAIL_TOKENS).write(
                publics(), batches(2), mechanism(), Internal(), stop=STOP, on_written=lambda part, _: told.append(part)
            )
        assert engine._process is None
    assert not told
    assert not any(mail in str(caught.value) for mail in MAILS)


def test_rows_that_are_not_computed_apart_are_refused_before_a_prompt_is_read(tiny_model: Path, tmp_path: Path) -> None:
    claims = Claims()
    with (
        played_by('send({"shared": True})\ntime.sleep(60)', tiny_model, tmp_path) as engine,
        pytest.raises(UserError, match="computed apart") as caught,
    ):
        engine.decoder(TAIL_TOKENS).write(publics(), batches(1), mechanism(), claims, stop=STOP)
    assert caught.value.remedy
    assert not claims.parts


def test_kinds_of_model_that_never_do_are_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    def refused(settings: dict[str, Any], **changes: Any) -> str:
        folder = tmp_path / str(random.random())
        folder.mkdir()
        for file in tiny_model.iterdir():
            (folder / file.name).symlink_to(file)
        config = json.loads((tiny_model / "config.json").read_text()) | settings
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        with (
            played_by("raise SystemExit", folder, tmp_path, **changes) as engine,
            pytest.raises(UserError) as caught,
        ):
            engine.decoder(TAIL_TOKENS)
        return caught.value.problem

    assert "quantised" in refused({}, quantization="fp8")
    assert "quantised" in refused({"quantization_config": {"quant_method": "fp8"}})
    assert "mixture of experts" in refused({"num_local_experts": 4})


def test_it_is_begun_anew_for_what_it_was_not_begun_for(tiny_model: Path, tmp_path: Path) -> None:
    """Texts without protection never come from a process that shares no cache for nothing, nor the other way round."""
    starts = tmp_path / "starts"
    program = f"""
send({{"ready": {{"max_model_len": 9}}}})
while True:
    request = receive()
    with open({str(starts)!r}, "a") as file:
        file.write(f"{{os.getpid()}} ")
    send({{"done": True}} if "write" in request else {{"texts": [[["so", True, 2]]]}})
"""
    sampling = Sampling(8, 1.0, 1.0, 0, STOP)
    with played_by(program, tiny_model, tmp_path) as engine:
        small, large = engine.decoder(20), engine.decoder(60)
        for one in (large, small, large):
            one.write(publics(), batches(1), mechanism(), Internal(), stop=STOP)
        engine.generate(["a"], 1, sampling, 0)
        small.write(publics(), batches(1), mechanism(), Internal(), stop=STOP)
        large.write(publics(), batches(1), mechanism(), Internal(), stop=STOP)
    pids = starts.read_text().split()
    assert pids[0] == pids[1] == pids[2]
    assert len({pids[2], pids[3], pids[4], pids[5]}) == 4


# ---- with vLLM ------------------------------------------------------------------------------------------------------


def nearly_greedy(**changes: Any) -> PrivatePrediction:
    """At next to no temperature the draw is the best candidate, whoever draws."""
    return mechanism(temperature=1e-6, **changes)


class TestWithVllm:
    pytestmark = needs_vllm

    @pytest.mark.parametrize("sensitivity", [0.0, 0.3, 5.0, math.inf])
    @pytest.mark.parametrize(("count", "texts"), [(40, 3), (7, 2), (1, 1)])
    def test_the_same_texts_as_with_transformers(
        self, decoder: VllmDecoder, loaded: tuple[Any, Any], sensitivity: float, count: int, texts: int
    ) -> None:
        """More of them than there is room for at a time, and ended at different steps."""
        one, work = nearly_greedy(sensitivity=sensitivity), batches(count, texts=texts)
        whole = write(loaded, work, one, texts=texts)
        ids = [loaded[1](row[0].text, add_special_tokens=False)["input_ids"] for row in whole]
        ends = {ids[0][3], ids[-1][2]}
        expected = write(loaded, work, one, texts=texts, ends=ends)
        told: dict[int, list[Generation]] = {}
        found = decoder.write(
            publics(texts), work, one, Internal(), stop=STOP, ends=ends, on_written=lambda p, r: told.update({p: r})
        )
        assert shown(found) == shown(expected)
        assert shown([told[batch.part] for batch in work]) == shown(found)

    def test_without_places_and_with_long_tails(self, wide_model: Path, loaded: tuple[Any, Any]) -> None:
        config = VllmConfig(kind="vllm", dtype="float32", kv_cache_gib=1)
        with contextlib.closing(VllmEngine(wide_model, config)) as engine:
            one, work = nearly_greedy(sensitivity=5.0), batches(4)
            bare = [Batch(part, ()) for part in range(3)]
            for width in (70, 9):
                found = engine.decoder(width).write(publics(), work, one, Internal(), stop=STOP, ends=set())
                assert shown(found) == shown(write(loaded, work, one, tail_tokens=width))
            found = engine.decoder(9).write(publics(), bare, one, Internal(), stop=STOP, ends=set())
            assert shown(found) == shown(write(loaded, bare, one, tail_tokens=9))

    def test_the_models_own_ends(self, decoder: VllmDecoder, loaded: tuple[Any, Any]) -> None:
        one, work = nearly_greedy(sensitivity=5.0, max_tokens=30), batches(12)
        found = decoder.write(publics(), work, one, Internal(), stop=STOP)
        assert shown(found) == shown(write(loaded, work, one, ends=None))

    def test_a_text_that_is_too_long_is_refused(self, decoder: VllmDecoder) -> None:
        with pytest.raises(UserError, match="attends to"):
            decoder.write(publics(), batches(1), mechanism(max_tokens=100_000), Internal(), stop=STOP)

    @pytest.mark.timeout(900)
    def test_observed_odds(self, decoder: VllmDecoder, loaded: tuple[Any, Any]) -> None:
        """Of two-token texts: those of neighbours stay within the guarantee, and are what transformers' are.

        Pure DP of a draw is 2C/(Bτ); of two draws twice that. The same tests must see a mechanism that is another.
        """
        count, member = 2000, Member(0, f"\n{MAILS[4]}\n")

        def frequencies(members: Sequence[Member | None], one: PrivatePrediction, how: str) -> Counter[str]:
            work = [Batch(part, tuple(members)) for part in range(count)]
            asked = [Public("### spam e-mail", "\n", 1.0)]
            if how == "vllm":
                found = decoder.write(asked, work, one, Internal(), stop=STOP, ends=set())
            else:
                found = write(loaded, work, one, 4096, texts=asked)
            return Counter(text.text for [text] in found)

        def worst(here: Counter[str], there: Counter[str]) -> float:
            """The largest log-ratio that chance cannot explain: lower confidence bounds, for outcomes seen often."""
            ratios = [0.0]
            for a, b in ((here, there), (there, here)):
                for text, n in a.items():
                    if n >= 30:
                        m = b.get(text, 0)
                        ratios.append(math.log(n / (m + 1)) - 4 * math.sqrt(1 / n + 1 / (m + 1)))
            return max(ratios)

        def alike(a: Counter[str], b: Counter[str]) -> float:
            """p-value of the two being one distribution; rare texts are taken together."""
            common = [text for text in a | b if a[text] + b[text] >= 20]
            rows = [[one[text] for text in common] + [count - sum(one[text] for text in common)] for one in (a, b)]
            return float(chi2_contingency([row for row in zip(*rows, strict=True) if sum(row)]).pvalue)

        settings = {"top_k": 3, "max_tokens": 2, "temperature": 0.2}
        guarded, loose = mechanism(sensitivity=0.05, **settings), mechanism(sensitivity=2.0, **settings)
        bound = 2 * 2 * guarded.sensitivity / guarded.temperature
        with_it, without = (frequencies([one], guarded, "vllm") for one in (member, None))
        assert worst(with_it, without) <= bound
        freely = frequencies([member], loose, "vllm")
        assert worst(freely, frequencies([None], loose, "vllm")) > bound
        assert alike(with_it, frequencies([member], guarded, "transformers")) > 1e-4
        assert alike(freely, frequencies([member], loose, "transformers")) > 1e-4
        assert alike(freely, with_it) < 1e-6

    @pytest.fixture(scope="class")
    def seen(self, wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """What is watched within vLLM: three batches, and the second without each of its records."""
        work, one = batches(3), mechanism(sensitivity=1.5)
        asked = [[[m and [m.text, m.tail] for m in batch.members] for batch in work]]
        for place, member in enumerate(work[1].members):
            if member is not None:
                less = [None if at == place else m for at, m in enumerate(asked[0][1])]
                asked.append([asked[0][0], less, asked[0][2]])
        request = {
            "publics": [asdict(public) for public in publics()],
            "places": 3,
            "tail_tokens": TAIL_TOKENS,
            "stop": STOP,
            "ends": [],
            "mechanism": asdict(one),
        }
        shift = request | {"mechanism": asdict(mechanism(sensitivity=1e-4)), "members": asked[0][0]}
        start = {"rows": 5, "width": 100, "longest": 120, "max_model_len": 200, "mechanism": mechanism_file()}
        return within(
            wide_model, tmp_path_factory, {"start": start, "write": request, "variants": asked, "shift": shift}
        )

    def test_a_record_moves_its_own_texts_scores_alone_and_by_no_more_than_c_over_b(self, seen: dict[str, Any]) -> None:
        whole, *without = seen["steps"]
        assert len(without) == 2
        assert len(whole) == 9
        gone = [place for place, member in enumerate(batches(3)[1].members) if member is not None]
        for place, less in zip(gone, without, strict=True):
            moved = 0.0
            for one, other in zip(whole, less, strict=True):
                assert torch.equal(one["public"], other["public"]), "the public scores are nobody's"
                rest = torch.ones(3, 3, dtype=torch.bool)
                rest[1, place] = False
                stay = rest[:, None, :, None].expand_as(one["private"])
                assert torch.equal(one["private"][stay], other["private"][stay]), "nobody else's move, not by a bit"
                change = (one["scores"] - other["scores"]).abs().amax(-1)  # (S, T)
                mine = torch.zeros(3, 2, dtype=torch.bool)
                mine[1, int(one["behind"][1, place])] = True
                assert bool((change[~mine] == 0).all()), "no other text is touched"
                assert float(change.max()) <= 1.5 * (1 + 1e-12)
                moved = max(moved, float(change.max()))
            assert moved > 0.1 * 1.5, "the record does count"

    def test_it_stops_where_rows_of_a_batch_are_not_together(self, seen: dict[str, Any]) -> None:
        stopped = dict(seen["torn"])
        assert stopped.pop("nothing") is False
        assert len(stopped) == 4
        assert all(stopped.values()), stopped

    def test_rows_that_share_anything_are_seen(
        self, seen: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """On a real model: threads that share a prompt's attention, as vLLM's do, sum it up in another order."""
        start = {"rows": 8, "width": 290, "longest": 330, "max_model_len": 400, "mechanism": mechanism_file()}
        real = within(resolve_model("smollm2-135m-instruct"), tmp_path_factory, {"start": start})
        assert seen["apart"] is True
        assert real == {"apart": True, "apart where threads share attention": False}

    def test_the_claim_put_to_the_test(self, seen: dict[str, Any], decoder: VllmDecoder) -> None:
        assert max(seen["moved"]) == pytest.approx(1e-4, rel=1e-6)
        assert max(seen["moved unclipped"]) > 1e-3
        [batch] = batches(1)
        assert decoder.shift(publics(), batch, mechanism(sensitivity=1e-4)) == pytest.approx(1e-4, rel=1e-6)
        assert math.isnan(decoder.shift(publics(), Batch(1, (None, None)), mechanism()))


def mechanism_file() -> str:
    """The mechanism's own file, as vLLM's Python loads it."""
    from tutelage.privacy import mechanism as module

    return str(Path(module.__file__).resolve())


def within(model: Path, tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]) -> dict[str, Any]:
    """What vllm_steps.py sees."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "asked.json").write_text(json.dumps(asked))
    environment = VllmEngine(model, VllmConfig(kind="vllm", kv_cache_gib=1))._environment()
    subprocess.run(
        [
            str(vllm_python()), "-I", str(Path(__file__).with_name("vllm_steps.py")),
            str(vllm_process.WORKER.parent), str(model), str(folder / "asked.json"), str(folder / "out.pt"),
        ],
        env=environment | {"OMP_NUM_THREADS": "2"},  # one thread shares with nobody
        check=True, timeout=500,
    )  # fmt: skip
    found: dict[str, Any] = torch.load(folder / "out.pt")
    return found
