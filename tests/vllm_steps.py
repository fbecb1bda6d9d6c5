"""What vLLM's own Python runs for test_vllm_private.py: steps of private decoding, watched from within.

    python vllm_steps.py ENGINES_FOLDER MODEL REQUEST.json OUT.pt

Beside what happens when rows of a batch are not together, on purpose.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Members = list[list[Any] | None]


def main() -> None:
    """Do all of it, and save what was seen."""
    folder, model, request_path, out = map(Path, sys.argv[1:])
    spec = importlib.util.spec_from_file_location("worker", folder / "vllm_worker.py")
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    asked = json.loads(request_path.read_text())
    settings = {"model": str(model), "dtype": "float32", "gpu_memory_utilization": 0.9, "enforce_eager": True}
    llm, modules, _ = worker._load(settings, asked["start"], None)
    private = modules.private
    found: dict[str, Any] = {"apart": modules.apart.apart(llm, asked["start"], private.Coupling)}
    if "write" not in asked:
        let_threads_share_attention()
        found["apart where threads share attention"] = modules.apart.apart(llm, asked["start"], private.Coupling)
        torch.save(found, out)
        return
    request = asked["write"]

    def decoding() -> Any:
        return private.Decoding(llm, request, modules)

    found["steps"] = [watched(decoding(), batches) for batches in asked["variants"]]
    found["slots"] = decoding().slots()

    batch: Members = asked["variants"][0][0]
    found["torn"] = {
        name: torn(private, decoding(), batch, spoil)
        for name, spoil in {
            "nothing": lambda one: None,
            "a row is gone": lambda one: one.engine.abort_request(["0/1"]),
            "a row was never there": never_there,
            "more than there is room for": lambda one: [one.admit(key, batch) for key in range(1, 200)],
            "another token was given": another_token,
        }.items()
    }
    found["moved"] = list(private.shift(llm, asked["shift"], modules))[-1]["moved"]
    real = modules.mechanism.PrivatePrediction.scores
    modules.mechanism.PrivatePrediction.scores = lambda self, *scored: real(
        modules.mechanism.PrivatePrediction(float("inf"), self.temperature, self.top_k, self.max_tokens), *scored
    )
    found["moved unclipped"] = list(private.shift(llm, asked["shift"], modules))[-1]["moved"]
    torch.save(found, out)


def let_threads_share_attention() -> None:
    """As vLLM does by itself on a processor."""
    from vllm import _custom_ops

    for name, function in vars(_custom_ops).copy().items():
        if name.startswith("cpu_att") and hasattr(function, "__wrapped__"):
            setattr(_custom_ops, name, function.__wrapped__)


def watched(one: Any, batches: list[Members]) -> list[dict[str, torch.Tensor]]:
    """What the mechanism was asked at every step, while texts go the same way whatever the scores are."""
    steps = []

    def draw(keys: list[int], public: torch.Tensor, members: Any) -> torch.Tensor:
        tokens, _ = one.mechanism.chosen(public)
        steps.append(
            {
                "public": public.clone(),
                "private": members.of(tokens.view(len(keys), one.texts, -1)),  # (S, T, P, K)
                "behind": one.behind(keys, public.device),
                "scores": one.mixed(keys, public, members, tokens).view(len(keys), one.texts, -1),
            }
        )
        return tokens[:, 0].view(len(keys), one.texts)

    one._draw = draw
    for key, members in enumerate(batches):
        one.admit(key, members)
    while one.running:
        for key in one.step():
            one.leave(key)
    return steps


def torn(private: Any, one: Any, members: Members, spoil: Callable[[Any], object]) -> bool:
    """Whether writing stops once something is wrong with a batch's rows."""
    apply = private.Coupling.apply
    one.admit(0, members)
    try:
        spoil(one)
        while one.running:
            for key in one.step():
                one.leave(key)
    except private.Torn:
        return True
    finally:
        private.Coupling.apply = apply
        one.engine.abort_request([f"{key}/{row}" for key in range(200) for row in range(one.rows)])
        while one.engine.has_unfinished_requests():
            one.engine.step()
    return False


def never_there(one: Any) -> None:
    """Another batch, of which a prompt got lost."""
    add = one.engine.add_request
    one.engine.add_request = lambda id, *others: None if id == "1/2" else add(id, *others)
    try:
        one.admit(1, one.running[0].members)
    finally:
        one.engine.add_request = add


def another_token(one: Any) -> None:
    """vLLM takes another token for a row than what was drawn."""
    coupling = sys.modules["tutelage_vllm_private_worker"].Coupling
    real = coupling.apply

    def apply(self: Any, logits: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = real(self, logits)
        if self.rows:
            given[1] = given[1].roll(1)
        return given

    coupling.apply = apply


if __name__ == "__main__":
    main()
