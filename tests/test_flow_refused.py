"""The real flow with a teacher that copies: its screen drops what it wrote, or its gate refuses; or a person overrides.

Apart from test_flow.py, so that both may run side by side.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import CopyingTeacher
from small_run import call, recipe_for, write_recipe

from tutelage.flows import layout, teaching
from tutelage.flows.stage import open_run


@pytest.mark.parametrize("loose", [False, True])
def test_a_copying_teacher_is_refused(
    loose: bool, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen drops every copy and nothing is left to learn; with the screen wide open the gate still sees it."""
    monkeypatch.setattr(teaching, "teacher_engine", lambda *_: CopyingTeacher())
    wide_open = {"max_common_run_tokens": 10_000, "max_ngram_share": 1.0, "max_jaccard": 1.0, "max_cosine": 1.0}
    changes = {"screen": wide_open} if loose else {}
    quick = {"originals": False, "few_shot_per_label": 1, "bootstrap": 100}
    data = recipe_for(mails[0], tiny_model, measure=quick, **changes)
    recipe = write_recipe(tmp_path, data)
    assert call(monkeypatch, "run", str(recipe), "--run-dir", str(tmp_path / "run")) == 3
    report = layout.report(open_run(tmp_path / "run"), 1)
    assert not report.decision.passed
    failed = " ".join(outcome.rule for outcome in report.decision.outcomes if not outcome.passed)
    if loose:
        assert "overlap.longest_run_max" in failed
    else:
        assert sum(report.lessons_per_class.values()) == 0
    assert not (tmp_path / "registry").exists()
    assert not list((tmp_path / "run" / "release").rglob("adapter_model.safetensors"))
    if loose:
        overridden(tmp_path / "run", monkeypatch)


def overridden(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused student is published by name and reason only, and the run's log says so."""
    assert call(monkeypatch, "publish", str(root)) == 3
    assert call(monkeypatch, "publish", str(root), "--override") == 2
    assert call(monkeypatch, "publish", str(root), "--override", "--by", "Ada Example", "--reason", "short") == 2
    assert not (root.parent / "registry").exists()
    reason = "It only copies a public corpus, see ticket 12."
    assert call(monkeypatch, "publish", str(root), "--override", "--by", "Ada Example", "--reason", reason) == 0
    card = (root.parent / "registry" / "small" / "v1" / "README.md").read_text()
    assert "Ada Example" in card
    assert reason in card
    assert reason in (root / "stages" / "round-1" / "override.json").read_text()
    assert call(monkeypatch, "audit", "verify", str(root)) == 0
