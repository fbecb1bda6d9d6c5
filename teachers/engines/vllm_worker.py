"""What vLLM's own Python runs for the engine in vllm.py: prompts come in by one pipe, texts go out by another.

It needs nothing but the standard library and vLLM. A message is its length in bytes (4, big endian), then JSON.

    in:  {"llm": {...}, "private": null, "adapter": null}        once: the arguments of vLLM's LLM
         adapter: {"name", "path", "rank"} of a LoRA adapter that writes all texts
    out: {"ready": {"max_model_len": 2048}} or {"failed": TYPE, "why": MESSAGE}
    in:  {"prompts": [TEXT], "seeds": [INT], "sampling": {...}, "structure": {...}}
         sampling: the arguments of SamplingParams; structure: `json_schema`, `choice` or `regex`, or null
    out: {"done": COUNT} any number of times, then {"texts": [[[TEXT, FINISHED]]]}, {"too_long": [TOKENS, LIMIT]} or
         {"failed": TYPE}: what went wrong may quote a prompt by now, so no more is said

For private prediction (vllm_private_worker.py) it begins with `private` being {"rows", "width", "longest",
"max_model_len", "mechanism": FILE}, and answers {"shared": true} where the model's rows are not computed apart; then

    in:  {"write": {...}} or {"shift": {...}}                    publics, places, tail_tokens, stop, ends, mechanism
    out: {"room": COUNT}, or {"written": BATCH, "texts": [[TEXT, FINISHED]]}, or {"done": true} after the last;
         {"moved": [LOGITS]} for a shift; {"too_long"} as above, {"no_room": TOKENS}
    in:  {"batches": [[BATCH, [[TEXT NUMBER, TAIL] or null]]]}   after `room`: as many, or fewer if there are no more

Between all these it says {"alive": true} after every step.

It ends with its whole process group as soon as its input ends, so also if its parent was killed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import struct
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any, BinaryIO, get_args

_LENGTH = struct.Struct(">I")


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message."""
    data = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    message: dict[str, Any] = json.loads(data)
    return message


def main() -> None:
    """Answer requests until the input ends."""
    # Whatever vLLM prints must not get between the messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    # Read by a thread: a text may take minutes, and the parent's end must be seen meanwhile.
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), requests), daemon=True).start()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # not for vLLM's own children
    try:
        start = requests.get()
        llm, modules, adapter = _load(start["llm"], start["private"], start["adapter"])
    except BaseException as error:  # no private text has been read yet
        traceback.print_exc()
        send(answers, {"failed": type(error).__name__, "why": str(error)})
        _end()
    if modules and not modules.apart.apart(llm, start["private"], modules.private.Coupling):
        send(answers, {"shared": True})
        _end()
    send(answers, {"ready": {"max_model_len": llm.model_config.max_model_len}})
    while True:
        request = requests.get()
        try:
            if "shift" in request:
                for answer in modules.private.shift(llm, request["shift"], modules):
                    send(answers, answer)
            elif "write" in request:
                for answer in modules.private.write(llm, request["write"], modules, requests.get):
                    send(answers, answer)
            else:
                send(answers, _answer(llm, request, answers, adapter))
        except BaseException as error:
            traceback.print_exc()  # nobody sees it, unless it was asked for: it may quote a prompt
            send(answers, {"failed": type(error).__name__})
            _end()


def _load(
    settings: dict[str, Any], private: dict[str, Any] | None, adapter: dict[str, Any] | None
) -> tuple[Any, Any, Any]:
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    here, modules = current_platform.is_cpu(), None
    if private:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # it asks no logits processor
        beside = Path(__file__).parent
        modules = types.SimpleNamespace(
            private=_module("vllm_private_worker", beside), apart=_module("vllm_apart", beside),
            drawn=_module("drawn", beside), mechanism=_module("mechanism", Path(private["mechanism"]).parent),
        )  # fmt: skip
        modules.apart.compute_apart(here)
        settings |= modules.private.settings(private)
    if settings["enforce_eager"] is None:  # compiling for a processor takes longer than it saves
        settings["enforce_eager"] = here
    if here:  # there a prompt that is read in parts fails if it has a seed: "CPU Generator does not use offset"
        settings["enable_chunked_prefill"] = False
    lora = None
    if adapter:
        from vllm.config.lora import MaxLoRARanks
        from vllm.lora.request import LoRARequest

        rank = min(one for one in get_args(MaxLoRARanks) if one >= adapter["rank"])
        settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        lora = LoRARequest(adapter["name"], 1, adapter["path"])
    # as the other engines: the same grammars, and JSON without white space, of which a small model writes no end
    structures = {"backend": "guidance", "disable_any_whitespace": True}
    llm = LLM(**settings, structured_outputs_config=structures, disable_log_stats=True)
    # What vLLM takes and then cannot run, it cannot run now, while it may still say why.
    few = SamplingParams(max_tokens=1, seed=0)
    llm.generate([{"prompt_token_ids": [0]}], few, use_tqdm=False, lora_request=lora)
    return llm, modules, lora


def _module(name: str, folder: Path) -> Any:
    """A file of ours: what is installed here is vLLM, not tutelage."""
    spec = importlib.util.spec_from_file_location(f"tutelage_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def _answer(llm: Any, request: dict[str, Any], answers: BinaryIO, adapter: Any) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    tokenizer = llm.get_tokenizer()
    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in request["prompts"]]
    longest = max(map(len, prompts)) + request["sampling"]["max_tokens"]
    if longest > llm.model_config.max_model_len:
        return {"too_long": [longest, llm.model_config.max_model_len]}
    engine, n = llm.llm_engine, request["sampling"]["n"]
    structured = {kind.removesuffix("_schema"): one for kind, one in (request["structure"] or {}).items()}
    for i, (ids, seed) in enumerate(zip(prompts, request["seeds"], strict=True)):
        # of n texts vLLM gives the j-th the seed + j
        settings = SamplingParams(
            **request["sampling"],
            seed=seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(**structured) if structured else None,
        )
        engine.add_request(str(i), {"prompt_token_ids": ids}, settings, lora_request=adapter)
    texts: list[list[tuple[str, bool, int]]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        done = [output for output in engine.step() if output.finished]
        for output in done:
            found = [(one.text, one.finish_reason == "stop", len(one.token_ids)) for one in output.outputs]
            texts[int(output.request_id)] = found
        send(answers, {"done": n * len(done)} if done else {"alive": True})
    llm.reset_prefix_cache()  # what one silo's prompts left is nothing for another's
    return {"texts": texts}


def _read(stream: BinaryIO, requests: queue.Queue[dict[str, Any]]) -> None:
    while True:
        try:
            requests.put(receive(stream))
        except EOFError:
            _end()


def _watch(parent: int) -> None:
    """See the parent's end where another of its children holds the pipe open."""
    while os.getppid() == parent:
        time.sleep(1)
    _end()


def _end() -> None:
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
