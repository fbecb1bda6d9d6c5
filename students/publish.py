"""The registry: a local folder in which published students stand, each version once and for good.

REGISTRY/NAME/v1/   adapter, tokenizer, README.md (model card), report.json
REGISTRY/NAME/index.json
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.records import Approval, GateDecision, Metric, Override, RoundReport, RuleOutcome
from tutelage.configs.store import digest, file_digest, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"v([1-9][0-9]*)")
_LOCAL_KEYS = ("name_or_path", "is_local", "local_files_only")
_WITHHELD = "internal figure, not published"


def adapter_digest(adapter: Path) -> str:
    """sha256 (hex) over an adapter's two files, as `RoundReport.adapter_digest` holds it.

    Raises:
        UserError: one of them is missing.
    """
    for name in _ADAPTER_FILES:
        if not (adapter / name).is_file():
            raise UserError(f"this folder holds no adapter (no {name})", file=adapter, remedy="run the round again")
    return digest({name: file_digest(adapter / name) for name in _ADAPTER_FILES})


def publish(
    adapter: Path,
    registry: Path,
    name: str,
    decision: GateDecision,
    report: RoundReport,
    *,
    base_name: str,
    tokenizer: PreTrainedTokenizerBase,
    override: Override | None = None,
    approval: Approval | None = None,
) -> Path:
    """Put an adapter that passed its gate into the registry, as the next version.

    Only aggregates go along: metrics marked internal, and what the gate saw of them, stay behind.

    Args:
        adapter: The student's folder, as `train_student` wrote it.
        registry: The registry's folder, made if missing.
        name: What the student is called there.
        decision: The gate's decision on this very student.
        report: The round's report, which holds the same decision and this adapter's digest.
        base_name: Public name of the base model.
        tokenizer: The base's tokenizer, put beside the adapter.
        override: Who wants it published although its gate refused, and why. It stands first on the model card.
        approval: Who approved it, and why, where a person has to. It stands on the model card.

    Returns:
        The version's folder. It is complete when it appears, and never changed afterwards.

    Raises:
        PrivacyError: the gate didn't pass and nobody overrides it, or decision, report and adapter don't belong
            together.
        UserError: the name can't be used, there is no adapter, or there is nothing to override.
    """
    _check(adapter, name, decision, report, base_name, override)
    if approval is not None and not approval.approved:
        raise PrivacyError("a person declined this student: it stays in the vault")
    shelf = registry / name
    shelf.mkdir(parents=True, exist_ok=True)
    public = public_report(report).model_copy(update={"override": override})
    with tempfile.TemporaryDirectory(prefix=".staged-", dir=shelf) as folder:
        staged = Path(folder) / "version"
        staged.mkdir()
        for file in _ADAPTER_FILES:
            shutil.copyfile(adapter / file, staged / file)
        _save_tokenizer(tokenizer, staged)
        write_atomic(staged / "report.json", public.model_dump_json(indent=1) + "\n")
        write_atomic(staged / "README.md", model_card(name, public, base_name, approval))
        target = _place(staged, shelf)
    _write_index(shelf)
    return target


def public_report(report: RoundReport) -> RoundReport:
    """The report without internal metrics and without the figures the gate saw of them."""
    hidden = [metric.name for metric in report.metrics if metric.internal]
    outcomes = tuple(_withhold(outcome, hidden) for outcome in report.decision.outcomes)
    return report.model_copy(
        update={
            "metrics": tuple(metric for metric in report.metrics if not metric.internal),
            "roc": tuple(curve for curve in report.roc if not curve.internal),
            "decision": report.decision.model_copy(update={"outcomes": outcomes}),
        }
    )


def model_card(name: str, report: RoundReport, base_name: str, approval: Approval | None = None) -> str:
    """README.md of a published student: hub front matter, what it is, its figures, its gate."""
    head = {
        "base_model": base_name,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["lora", "peft", "social-learning", "synthetic-data", "tutelage"],
        "metrics": sorted({metric.name.split(".")[0] for metric in report.metrics if ".student" in metric.name}),
    }
    outcomes = "".join(
        f"- {'passed' if outcome.passed else '**refused**'}: {outcome.rule}: {_figure(outcome.observed)}\n"
        for outcome in report.decision.outcomes
    )
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}\n\n{_warning(report.override)}"
        f"A LoRA adapter for `{base_name}`, trained on synthetic lessons written by the teachers of "
        f"{len(report.silos)} silos (recipe `{report.recipe_name}`, run `{report.run_id}`, round {report.round}). "
        f"{_preferred(report)}It was trained on no original record.\n\n"
        f"**Protection.** {report.protection}\n\n"
        f"## Use\n\nGive it this system prompt, the one it was trained with:\n\n{_quoted(report.instruction)}\n\n"
        f"{_USE.replace('INSTRUCTION', json.dumps(report.instruction))}\n"
        f"## Figures\n\n{_table(report.metrics)}\n"
        f"## Gate\n\n{outcomes}{_approved(approval)}\n"
        f"Lessons `{report.lessons_digest}`, adapter `{report.adapter_digest}`, recipe `{report.recipe_digest}`.\n"
    )


_USE = """\
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # where these files are
student, tokenizer = AutoPeftModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
chat = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": "..."}]
asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = student.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

The figures below are of the likeliest of the task's labels, calibrated on the lessons, as `tutelage ask` answers; where
the task is to write, of what is written like this.
"""
"""How to load it; the instruction is written as a JSON string, which is one of Python's."""


def _check(
    adapter: Path, name: str, decision: GateDecision, report: RoundReport, base_name: str, override: Override | None
) -> None:
    passed = decision.passed and bool(decision.outcomes) and all(outcome.passed for outcome in decision.outcomes)
    if not passed and override is None:
        raise PrivacyError("the gate did not let this student pass: it stays in the vault")
    if passed and override is not None:
        raise UserError("the gate passed: there is nothing to override", remedy="publish it without --override")
    if report.decision != decision:
        raise PrivacyError("the report holds another decision than the one given")
    if adapter_digest(adapter) != report.adapter_digest:
        raise PrivacyError("the report is about another adapter than the one given")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    if settings.get("base_model_name_or_path") != base_name:
        raise PrivacyError("the adapter's config names another base model, or a folder of this machine")
    if not _NAME.fullmatch(name):
        raise UserError(
            "this name can't be used in a registry",
            key="name",
            remedy="small letters, digits, '.', '_' and '-', at most 64, a letter or digit first",
        )


def _warning(override: Override | None) -> str:
    if override is None:
        return ""
    return (
        "> **This student was refused by its gate and published all the same**, "
        f"by {_one_line(override.by)}, who gives this reason:\n>\n{_quoted(override.reason)}\n\n"
    )


def _preferred(report: RoundReport) -> str:
    if not report.preference_pairs:
        return ""
    return (
        "After the lessons it was trained by direct preference optimisation (arXiv:2305.18290) on pairs of a chosen "
        f"and a rejected lesson that reviewers' decisions make ({report.preference_pairs} in all). "
    )


def _approved(approval: Approval | None) -> str:
    if approval is None:
        return ""
    return f"\nApproved by {_one_line(approval.by)}, {approval.at}:\n\n{_quoted(approval.reason)}\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _withhold(outcome: RuleOutcome, hidden: Sequence[str]) -> RuleOutcome:
    if not any(name in outcome.rule for name in hidden):
        return outcome
    return outcome.model_copy(update={"observed": None, "reason": _WITHHELD})


def _figure(observed: float | None) -> str:
    return _WITHHELD if observed is None else f"observed {observed:.4g}"


def _quoted(text: str) -> str:
    """A Markdown quotation; no line of the text can end it or start anything else."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def _table(metrics: Sequence[Metric]) -> str:
    rows = "".join(
        f"| {m.name} | {m.value:.4g} | {m.ci_low:.4g} to {m.ci_high:.4g} | {m.n} | {m.interval} |\n" for m in metrics
    )
    return f"| Metric | Value | Interval | n | How |\n|---|---|---|---|---|\n{rows}"


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text())
    kept = {key: value for key, value in settings.items() if key not in _LOCAL_KEYS}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _versions(shelf: Path) -> list[int]:
    matches = (_VERSION.fullmatch(path.name) for path in shelf.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _place(staged: Path, shelf: Path) -> Path:
    """Move the finished folder to the next free version; another publisher may be taking versions, too."""
    while True:
        target = shelf / f"v{max(_versions(shelf), default=0) + 1}"
        try:
            return staged.rename(target)
        except OSError as error:
            # A folder with something in it is never replaced by a rename.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _write_index(shelf: Path) -> None:
    """List all versions, found by looking: an index that a killed publisher left behind is mended by the next."""
    rows = []
    for number in _versions(shelf):
        folder = shelf / f"v{number}"
        report = json.loads((folder / "report.json").read_text())
        rows.append(
            {
                "version": f"v{number}",
                "run_id": report["run_id"],
                "round": report["round"],
                "adapter_digest": report["adapter_digest"],
                "files": {path.name: file_digest(path) for path in sorted(folder.iterdir())},
            }
        )
    write_atomic(shelf / "index.json", json.dumps({"name": shelf.name, "versions": rows}, indent=1) + "\n")
