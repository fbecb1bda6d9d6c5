"""How often the gate is wrong: the sums, what is kept between calls, and a few real worlds of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_run import call, recipe_for, write_recipe

from tutelage.configs.errors import UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.records import Metric
from tutelage.configs.schema import Recipe
from tutelage.flows.power import gates, ground, worlds
from tutelage.flows.power.gates import judge, kinds_asked, privacy_rules
from tutelage.flows.power.worlds import KINDS, Pipeline, World
from tutelage.privacy.stats import clopper_pearson
from tutelage.students import pocket

RULES = [
    {"metric": "accuracy.student", "op": ">=", "value": 0.9},
    {"metric": "mia.loss.auc", "bound": "ci_low", "op": "<=", "value": 0.55},
    {"metric": "canary.p_value", "op": ">=", "value": 0.01},
    {"metric": "lessons.canary_verbatim", "op": "<=", "value": 0},
    {"metric": "overlap.longest_run_max", "op": "<=", "value": 12},
]
PRIVATE = {"mechanism": "private_prediction", "epsilon": 4.0, "batch_units": 8}


def recipe(
    tmp_path: Path, privacy: dict[str, Any] | None = None, rules: list[dict[str, Any]] = RULES
) -> dict[str, Any]:
    """Smaller than any that is of use."""
    made = recipe_for(tmp_path / "none.jsonl", tmp_path)
    made["teach"] = {"prompts_per_label": 2, "max_new_tokens": 24} if privacy else {}
    made["attack"] = {"canaries": 24, "ranked_canaries": 8, "canary_candidates": 12, "members": 40}
    made["student"] = {"epochs": 2, "rank": 8}
    made["aggregate"] = {"lessons_per_class": 12}
    made["gate"] = {"rules": rules}
    return made | ({"privacy": privacy} if privacy else {})


def parsed(tmp_path: Path, **changes: Any) -> Recipe:
    return parse_recipe(recipe(tmp_path, **changes))


def world(pipeline: Pipeline, seed: int, **values: float) -> World:
    shown = {"mia.loss.auc": 0.5, "canary.p_value": 0.5, "lessons.canary_verbatim": 0, "overlap.longest_run_max": 5}
    shown |= {name.replace("__", "."): value for name, value in values.items()}
    metrics = tuple(Metric(name=name, value=one, ci_low=one, ci_high=one, n=9) for name, one in shown.items())
    return World(pipeline, seed, 3, metrics)


# ---- the sums ----------------------------------------------------------------------------------------------------


def test_a_gate_is_wrong_if_it_passes_leaks_or_refuses_others(tmp_path: Path) -> None:
    several = [
        world("never_saw", 0),
        world("never_saw", 1, canary__p_value=0.001),  # bad luck
        world("copies", 0, overlap__longest_run_max=40, lessons__canary_verbatim=1),
        world("copies", 1),  # not found
        world("copies", 2, overlap__longest_run_max=40),
    ]
    never, copies = judge(several, parsed(tmp_path))
    assert (never.pipeline, never.seeds, never.wrong, never.leaks) == ("never_saw", 2, 1, False)
    assert (copies.pipeline, copies.seeds, copies.wrong, copies.leaks) == ("copies", 3, 1, True)
    assert copies.by == (("overlap.longest_run_max <= 12", 2), ("lessons.canary_verbatim <= 0", 1))
    assert copies.interval == clopper_pearson(1, 3)


def test_a_figure_that_a_world_has_not_refuses(tmp_path: Path) -> None:
    lost = World("never_saw", 0, 3, world("never_saw", 0).metrics[1:])
    [verdicts] = judge([lost], parsed(tmp_path))
    assert verdicts.wrong == 1
    assert verdicts.by[0][0].startswith("mia.loss.auc")


def test_rules_that_no_world_can_tell_about_are_left_out(tmp_path: Path) -> None:
    minus = {"metric": "mia.loss.auc", "minus": "accuracy.student", "op": "<=", "value": 1}
    kept = privacy_rules(parsed(tmp_path, rules=[*RULES, minus])).rules
    assert [rule.metric for rule in kept] == [rule["metric"] for rule in RULES[1:]]
    with pytest.raises(UserError) as caught:
        privacy_rules(parsed(tmp_path, rules=RULES[:1]))
    assert caught.value.key == "gate.rules"


def test_kinds_are_those_that_a_recipe_can_have(tmp_path: Path) -> None:
    assert kinds_asked(parsed(tmp_path), None) == [name for name in KINDS if not KINDS[name].formal]
    assert kinds_asked(parsed(tmp_path, privacy=PRIVATE), None) == list(KINDS)
    assert kinds_asked(parsed(tmp_path), ["overfits"]) == ["overfits"]
    for name in ("unclipped", "no such"):
        with pytest.raises(UserError, match=name) as caught:
            kinds_asked(parsed(tmp_path), [name])
        assert "copies" in str(caught.value.remedy)


def test_what_is_kept_is_of_the_same_settings_and_whole(tmp_path: Path) -> None:
    results, here = tmp_path / "results.jsonl", parsed(tmp_path)
    key = gates._key(here)
    gates._append(results, world("copies", 3, canary__p_value=float("nan")), key)
    gates._append(results, world("copies", 4), "of other settings")
    with results.open("a") as stream:
        stream.write('{"key": "cut sh')
    gates._append(results, world("never_saw", 5), key)
    back, after = gates._read(results, key)
    assert (after.pipeline, after.seed) == ("never_saw", 5)
    assert (back.pipeline, back.seed, back.lessons) == ("copies", 3, 3)
    assert {metric.name: metric.measured for metric in back.metrics}["canary.p_value"] is False
    assert gates._key(parsed(tmp_path, rules=RULES[1:3])) == key, "another gate is asked about the same worlds"
    assert gates._key(parsed(tmp_path, privacy=PRIVATE)) != key


# ---- real worlds -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_ground(mail_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Real mails and a base that is trained for a few seconds, in a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground, "cache_dir", lambda: cache)
        patch.setattr(ground, "_WRITTEN", 64)
        patch.setattr(worlds, "_SILO_RECORDS", 24)
        patch.setattr(pocket, "make_pocket_model", partial(pocket.make_pocket_model, steps=60))
        ground.ground.cache_clear()
        yield
        ground.ground.cache_clear()


def verdicts_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, dict[str, Any]]:
    assert call(monkeypatch, "audit", "power", *arguments, "--json") == 0
    return {row["pipeline"]: row for row in json.loads(capsys.readouterr().out)}


@pytest.mark.usefixtures("small_ground")
def test_leaks_are_refused_and_others_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = write_recipe(tmp_path, recipe(tmp_path)), tmp_path / "results.jsonl"
    asked = (str(path), "--seeds", "1", "--results", str(results))
    found = verdicts_of(monkeypatch, capsys, *asked)
    assert {name: (row["leaks"], row["wrong"]) for name, row in found.items()} == {
        "never_saw": (False, 0),
        "copies": (True, 0),
        "overfits": (True, 0),
    }
    assert "overlap.longest_run_max <= 12" in found["copies"]["refused_by"]
    assert not any(rule.startswith("overlap") for rule in found["overfits"]["refused_by"])  # its lessons are harmless
    assert any(rule.startswith("mia.loss") for rule in found["overfits"]["refused_by"])

    # A second call measures nothing; another gate is judged on what is there.
    monkeypatch.setattr(worlds, "simulate", None)
    assert verdicts_of(monkeypatch, capsys, *asked) == found
    write_recipe(tmp_path, recipe(tmp_path, rules=RULES[4:]))
    blind = verdicts_of(monkeypatch, capsys, *asked)
    assert {name: row["wrong"] for name, row in blind.items()} == {"never_saw": 0, "copies": 0, "overfits": 1}


@pytest.mark.usefixtures("small_ground")
def test_a_mechanism_that_does_not_clip_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The clip goes with ε: at ε = 1 so small a model at times stays within it, clipped or not.
    made = recipe(tmp_path, privacy={**PRIVATE, "epsilon": 0.2}, rules=RULES[3:])
    made["teach"]["prompts_per_label"] = 5  # of 20 texts half are malformed, of 8 at times all but one
    path = write_recipe(tmp_path, made)
    kinds = ("--kind", "as_claimed", "--kind", "unclipped")
    found = verdicts_of(monkeypatch, capsys, str(path), "--seeds", "1", *kinds)
    assert {name: row["wrong"] for name, row in found.items()} == {"as_claimed": 0, "unclipped": 0}
    assert "audit.mechanism.shift_ratio <= 1.001" in found["unclipped"]["refused_by"]


@pytest.mark.usefixtures("small_ground")
def test_a_world_that_nobody_can_learn_from_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "_privately", lambda *_: ([], []))
    here = parsed(tmp_path, privacy=PRIVATE)
    [verdicts] = judge([worlds.simulate(here, "as_claimed", 0)], here)
    assert (verdicts.seeds, verdicts.wrong) == (1, 1)


def test_the_table_says_when_the_gate_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gates, "measure", lambda *_, **__: [world("never_saw", 0), world("copies", 0)])
    monkeypatch.setenv("COLUMNS", "140")
    assert call(monkeypatch, "audit", "power", str(write_recipe(tmp_path, recipe(tmp_path)))) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert any(row[:3] == ["teacher", "never", "saw"] and "refused" in row and "0.0%" in row for row in rows)
    assert any(row[:2] == ["teacher", "copies"] and "passed" in row and "100.0%" in row for row in rows)
