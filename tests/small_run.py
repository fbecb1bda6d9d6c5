"""A small run on real mails: its recipe, the command line in this process, and the search for what must not escape."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PREFECT_HOME

from tutelage.flows.cli import main
from tutelage.privacy.mail import load_mails

PLANTED = 100


def plant_strings(mail_package: Path, folder: Path) -> tuple[Path, list[str]]:
    """240 real mails as JSONL, 100 of them with a unique private string, 120 senders; and the strings."""
    draw = random.Random(5)
    records = load_mails(mail_package, 240)
    draw.shuffle(records)
    chosen = [record for label in ("spam", "ham") for record in [r for r in records if r.completion == label][:120]]
    draw.shuffle(chosen)
    secrets = [f"zq{draw.getrandbits(60):015x}" for _ in range(PLANTED)]
    path = folder / "mails.jsonl"
    with path.open("w") as stream:
        for i, record in enumerate(chosen):
            secret = f" My reference is {secrets[i]}." if i < PLANTED else ""
            row = {"text": record.text[:150] + secret, "label": record.completion, "sender": f"sender {i % 120}"}
            stream.write(json.dumps(row) + "\n")
    return path, secrets


def recipe_for(path: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """A recipe that takes seconds."""
    data: dict[str, Any] = {
        "name": "small",
        "task": {
            "kind": "classification",
            "description": "Decide whether an e-mail is spam or ham.",
            "text_noun": "e-mail",
            "labels": {"spam": "unsolicited bulk mail", "ham": "a wanted e-mail"},
        },
        "data": {
            "records": {"source": "files", "path": str(path)},
            "silos": 2,
            "test_records": 20,
            "nonmember_records": 20,
            "max_chars": 240,
        },
        "teach": {
            "model": str(model),
            "prompts_per_label": 4,
            "references_per_prompt": 2,
            "drafts_per_prompt": 3,
            "keep_per_prompt": 2,
        },
        "screen": {"check_texts": 4},
        "aggregate": {"lessons_per_class": 6},
        "student": {"base": str(model), "rank": 2, "alpha": 4, "epochs": 2, "batch_rows": 4, "max_tokens": 768},
        "measure": {"few_shot_per_label": 1, "bootstrap": 100, "neutral_texts": 2},
        "attack": {"canaries": 8, "canary_copies": 1, "canary_candidates": 8, "members": 12},
        "gate": {
            "rules": [
                {"metric": "overlap.longest_run_max", "op": "<=", "value": 12},
                {"metric": "overlap.near_duplicate_share", "op": "<=", "value": 0},
                {"metric": "lessons.canary_verbatim", "op": "<=", "value": 0},
            ]
        },
    }
    for section, values in changes.items():
        data[section] = {**data[section], **values} if isinstance(values, dict) else values
    return data


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command line in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["tutelage", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def nothing_escaped(root: Path, planted: list[str]) -> None:
    """No planted string stands in any file beside the vault, nor in Prefect's folder."""
    secrets = [secret.encode() for secret in planted]
    vault = b"".join(path.read_bytes() for path in files_below(root / "vault"))
    assert sum(secret in vault for secret in secrets) > 60, "the strings must be in the vault for this to mean anything"
    outside = [path for path in files_below(root.parent) if (root / "vault") not in path.parents]
    searched = [*outside, *files_below(PREFECT_HOME)]
    assert any(path.suffix == ".db" for path in searched)
    for path in searched:
        content = path.read_bytes()
        found = [i for i, secret in enumerate(secrets) if secret in content]
        assert not found, f"{path} holds planted strings {found}"
