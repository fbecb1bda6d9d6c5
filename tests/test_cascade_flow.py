"""The real flow with several teachers, small: two tiny models, real mails, a journal in the vault of every silo."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from drive import printed, start
from small_run import call, files_below, nothing_escaped, recipe_for, write_recipe
from test_formal_flow import EVOLVED, PRIVATE, formal_recipe
from tiny_model import make_tiny_model

from tutelage.configs.load import parse_recipe
from tutelage.configs.records import Spending
from tutelage.configs.schema import TeacherConfig
from tutelage.flows import attacks, layout, stages
from tutelage.flows.report.spending import Costs
from tutelage.flows.stage import create_run, open_run
from tutelage.privacy.drafts import read_drafts

CASCADE = {"by": "cascade", "budget": 0.08, "calibration_prompts": 2, "scorer": "typicality"}


@pytest.fixture(scope="session")
def two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    other = make_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=1)
    return [
        {"name": "small", "model": str(tiny_model), "prompt_price": 1, "draft_price": 2},
        {"name": "large", "model": str(other), "prompt_price": 4, "draft_price": 8},
    ]


def routed(recipe: dict[str, Any], two: list[dict[str, Any]], route: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(recipe)
    del made["teach"]["model"]
    made["teach"] |= {"teachers": two, "route": route}
    return made


def screened(mails: tuple[Path, list[str]], model: Path) -> dict[str, Any]:
    teach = {"max_new_tokens": 12, "batch_rows": 6, "max_retries": 0}
    quick = {"originals": False, "few_shot_per_label": 1, "bootstrap": 100}
    return recipe_for(mails[0], model, teach=teach, screen={"min_words": 1}, measure=quick)


def spent(journal: Path) -> float:
    """By a sum of the test's own: calls at what they were settled at, open ones at their worst."""
    prices, calls = {"small": (1, 2), "large": (4, 8)}, []
    for row in map(json.loads, journal.read_text().splitlines()):
        if "reserve" in row:
            calls.append([row["teacher"], row["read"], row["drawn"]])
        else:
            calls[row["settle"]][1:] = row["read"], row["drawn"]
    return sum(prices[name][0] * read + prices[name][1] * drawn for name, read, drawn in calls) / 1e6


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two processes with a Prefect server each, one of them killed
def test_a_run_with_a_cascade_is_killed_goes_on_and_keeps_its_budget(
    mails: tuple[Path, list[str]], tiny_model: Path, two: list[dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = write_recipe(tmp_path, routed(screened(mails, tiny_model), two, CASCADE))
    root = tmp_path / "run"
    process = start("own", "run", str(recipe), "--run-dir", str(root), output=tmp_path / "said")
    for line in printed(process, tmp_path / "said"):
        if line.split() == ["round-1/teach-silo-0", "..."]:
            while process.is_alive() and not any(path.stat().st_size for path in root.rglob("spending.jsonl")):
                process.join(0.002)
            os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    begun = layout.spending_path(open_run(root), 1, "silo-0").read_text().count("reserve")
    assert process.exitcode == -signal.SIGKILL
    assert begun > 0

    assert call(monkeypatch, "resume", str(root)) in (0, 3)  # so small a student may be refused
    run = open_run(root)
    report = layout.report(run, 1)
    assert [one.silo for one in report.spending] == run.silos
    for one in report.spending:
        assert one.budget == pytest.approx(0.04)
        assert one.cost <= 0.04
        assert one.cost == pytest.approx(spent(layout.spending_path(run, 1, one.silo)))
        assert one.cost == pytest.approx(sum(teacher.cost for teacher in one.teachers))
        assert one.calibration_drafts == 6
        assert sum(teacher.drafts for teacher in one.teachers) + one.unwritten == 18
        assert one.score is not None
        assert one.score.n == 6
    lost = {one.silo: one.lost for one in report.spending}
    assert lost["silo-1"] == 0
    shown = capfd.readouterr().out
    assert (Costs(report.spending)).line in shown
    page = (root / "release" / "report.html").read_text()
    assert "What the teachers cost" in page
    nothing_escaped(root, mails[1])
    assert call(monkeypatch, "audit", "verify", str(root)) == 0


def taught(root: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of every silo's teaching, in a run of its own."""
    run = create_run(parse_recipe(recipe), root)
    prepared = stages.prepare(str(root), after=[])
    found = []
    for silo in run.silos:
        indexed = stages.index(str(root), silo, after=[prepared])
        found.append(stages.teach(str(root), 1, silo, after=[indexed]).facts)
    return found


@pytest.mark.parametrize("route", [{"by": "cascade", "budget": 0.2, "calibration_prompts": 4}, {"by": "skill"}])
def test_private_evolution_with_several_teachers(
    route: dict[str, Any], mails: tuple[Path, list[str]], tiny_model: Path, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    evolved = formal_recipe(mails[0], tiny_model, {**EVOLVED, "brackets": []})
    for facts in taught(tmp_path / "run", routed(evolved, two, route)):
        found = Spending(**facts["spending"])
        assert found.calibration_drafts == route.get("calibration_prompts", 8)
        assert found.cost > 0
        assert found.budget is None or found.cost <= found.budget == pytest.approx(0.1)
        assert sum(one.drafts for one in found.teachers) > 0
    run = open_run(tmp_path / "run")
    assert all(read_drafts(layout.drafts_path(run, 1, silo)) for silo in run.silos)
    journals = [path for path in files_below(tmp_path / "run") if path.name == "spending.jsonl"]
    assert len(journals) == 2
    assert all((tmp_path / "run" / "vault") in path.parents for path in journals)


def test_a_budget_for_one_draft_or_less_leaves_a_run_with_few_and_says_so(
    mails: tuple[Path, list[str]], tiny_model: Path, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    by_label = {"by": "label", "teachers": {"spam": "large", "ham": "small"}, "budget": 0.002}
    for facts in taught(tmp_path / "run", routed(screened(mails, tiny_model), two, by_label)):
        found = Spending(**facts["spending"])
        assert found.cost <= 0.001
        assert found.unwritten > 0
        assert facts["sampled"] == sum(one.drafts for one in found.teachers) < 24
        assert facts["sampled"] + found.unwritten == 24


def test_silos_have_teachers_of_their_own_under_private_prediction_too(
    mails: tuple[Path, list[str]], tiny_model: Path, two: list[dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tutelage.flows import teaching

    opened: list[str] = []
    real = teaching.teacher_engine

    def seen(teacher: TeacherConfig, batch_rows: int) -> Any:
        opened.append(teacher.model)
        return real(teacher, batch_rows)

    monkeypatch.setattr(teaching, "teacher_engine", seen)
    monkeypatch.setattr(attacks, "teacher_engine", seen)
    private = formal_recipe(mails[0], tiny_model, {**PRIVATE, "brackets": []})
    by_silo = {"by": "silo", "teachers": {"silo-0": "large", "silo-1": "small"}}
    found = taught(tmp_path / "run", routed(private, two, by_silo))
    assert opened == [two[1]["model"], two[0]["model"]]
    assert all("spending" not in facts for facts in found)
    probed = attacks.probe_mechanism(str(tmp_path / "run"), after=[])
    assert sorted(opened[2:]) == sorted(one["model"] for one in two), "the mechanism is tried on every teacher"
    assert probed.facts["metrics"]


def test_a_silo_that_the_route_does_not_name_is_told_before_anything_is_done(
    mails: tuple[Path, list[str]], tiny_model: Path, two: list[dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    by_silo = {"by": "silo", "teachers": {"silo-0": "large", "north": "small"}}
    recipe = write_recipe(tmp_path, routed(screened(mails, tiny_model), two, by_silo))
    assert call(monkeypatch, "validate", str(recipe)) == 2
    said = capfd.readouterr().err
    assert "teach.route.teachers" in said
    assert "the silos are silo-0, silo-1" in said
