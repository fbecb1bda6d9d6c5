"""The cost of a run, said before it runs: the counts are exact, the times at least make sense."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.configs.errors import UserError
from tutelage.configs.load import parse_recipe
from tutelage.flows.cli import main
from tutelage.flows.plan import Plan, PlannedSpending, plan

WORDS = ("train", "leaves", "nine", "ticket", "coffee", "music", "garden", "paper", "window", "sold", "out", "late")
SILOS, TEST, NONMEMBERS, RECORDS = 2, 20, 10, 110


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 different made-up texts, half of each label."""
    draw = random.Random(3)
    path = tmp_path_factory.mktemp("plan") / "texts.jsonl"
    rows = [{"text": " ".join(draw.choices(WORDS, k=15)), "label": "ab"[i % 2]} for i in range(RECORDS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_for(data: Path, model: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "rounds": 2,
        "task": {"kind": "classification", "description": "Sort.", "labels": {"a": "one kind", "b": "another"}},
        "data": {
            "records": {"source": "files", "path": str(data)},
            "silos": SILOS, "test_records": TEST, "nonmember_records": NONMEMBERS,
        },
        "teach": {"model": str(model), "prompts_per_label": 5, "drafts_per_prompt": 3, "max_new_tokens": 16,
                  "batch_rows": 4},
        "student": {"base": str(model)},
        "gate": {"rules": [{"metric": "accuracy.student", "op": ">=", "value": 0.5}]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(data: Path, tiny_model: Path) -> Plan:
    return plan(parse_recipe(recipe_for(data, tiny_model)))


def test_every_record_is_accounted_for(made: Plan) -> None:
    assert sorted(made.records_per_silo) == ["silo-0", "silo-1"]
    assert (made.test_records, made.nonmember_records) == (TEST, NONMEMBERS)
    assert sum(made.records_per_silo.values()) == RECORDS - TEST - NONMEMBERS


def test_prompts_and_drafts_are_those_of_the_recipe(made: Plan) -> None:
    assert made.prompts == 2 * SILOS * 2 * 5
    assert made.drafts == made.prompts * 3
    assert made.generated_tokens == made.drafts * 16


def test_the_times_add_up(made: Plan) -> None:
    parts = made.teach_minutes + made.train_minutes + made.measure_minutes
    assert min(made.teach_minutes, made.train_minutes, made.measure_minutes) > 0
    assert made.total_minutes == pytest.approx(parts + 1)
    assert made.teach_minutes * 60 == pytest.approx(
        made.prompt_tokens / made.prefill_tokens_per_s + made.generated_tokens / made.decode_tokens_per_s
    )
    assert made.memory_gib > 1


def test_more_rounds_and_no_upper_line_change_the_cost_as_they_should(made: Plan, data: Path, tiny_model: Path) -> None:
    recipe = recipe_for(data, tiny_model)
    once = plan(parse_recipe({**recipe, "rounds": 1, "measure": {"originals": False}}))
    assert made.prompts == 2 * once.prompts
    assert made.prompt_tokens == pytest.approx(2 * once.prompt_tokens, abs=2)
    # the first round's lessons are learnt from again in the second, and there is one student instead of two
    assert made.training_tokens > 3 * once.training_tokens
    assert made.scored_tokens > 2 * once.scored_tokens


def test_a_generation_has_prompts_per_silo(tmp_path: Path, tiny_model: Path) -> None:
    draw = random.Random(4)
    path = tmp_path / "answers.jsonl"
    rows = [{"prompt": " ".join(draw.choices(WORDS, k=9)), "completion": str(i)} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_for(path, tiny_model) | {"task": {"kind": "generation", "description": "Answer."}}
    planned = plan(parse_recipe(recipe))
    assert planned.prompts == 2 * SILOS * 5
    recipe["task"] |= {"completion": {"regex": "[0-9]+"}}
    structured = plan(parse_recipe(recipe))
    assert structured.generated_tokens == 2 * planned.generated_tokens, "the answers are texts of their own"
    assert structured.prompt_tokens > planned.prompt_tokens + planned.generated_tokens
    assert (structured.prompts, structured.drafts) == (planned.prompts, planned.drafts)


def test_the_command_prints_it(
    data: Path, tiny_model: Path, made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_for(data, tiny_model)))
    shown = []
    for arguments in (["plan", str(path)], ["plan", str(path), "--json"]):
        monkeypatch.setattr(sys, "argv", ["tutelage", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        shown.append(capsys.readouterr().out)
    for named in (
        "silo-0 ",
        "20 test, 10 non-members",
        "prompts            40 with",
        "tokens/s",
        " min: teach",
        "GiB",
    ):
        assert named in shown[0]
    counted = Plan(**json.loads(shown[1]))
    timed = ["teach_minutes", "train_minutes", "measure_minutes", "total_minutes", "prefill_tokens_per_s",
             "decode_tokens_per_s"]  # fmt: skip
    assert replace(counted, **{name: getattr(made, name) for name in timed}) == made
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"], "a plan writes nothing"


def test_times_are_measured_with_transformers_whatever_the_engine(data: Path, tiny_model: Path, made: Plan) -> None:
    recipe = recipe_for(data, tiny_model)
    recipe["teach"]["engine"] = "vllm"
    planned = plan(parse_recipe(recipe))
    assert (planned.engine, planned.measured_with) == ("vllm", "transformers")
    assert planned.generated_tokens == made.generated_tokens


def test_a_server_cannot_be_measured(data: Path, tiny_model: Path) -> None:
    recipe = recipe_for(data, tiny_model)
    recipe["teach"]["engine"] = {"kind": "openai", "url": "http://127.0.0.1:9/v1"}
    with pytest.raises(UserError, match="can't be measured") as caught:
        plan(parse_recipe(recipe))
    assert "teach.engine=transformers" in (caught.value.remedy or "")


def test_the_cost_of_several_teachers_lies_between_the_cheapest_and_the_budget(data: Path, tiny_model: Path) -> None:
    def planned(route: dict[str, Any]) -> PlannedSpending:
        recipe = recipe_for(data, tiny_model)
        del recipe["teach"]["model"]
        prices = ((1, 1), (5, 10))
        recipe["teach"]["teachers"] = [
            {"name": f"t{i}", "model": str(tiny_model), "prompt_price": read, "draft_price": drawn}
            for i, (read, drawn) in enumerate(prices)
        ]
        recipe["teach"]["route"] = route
        found = plan(parse_recipe(recipe))
        assert found.spending is not None
        read, drawn = found.prompt_tokens / 1e6, found.generated_tokens / 1e6
        assert found.spending.dearest == pytest.approx(5 * read + 10 * drawn)
        # a fifth of the prompts is answered by both for calibration: 2 of 10 in each silo and round
        assert found.spending.low == pytest.approx((0.8 + 0.2) * (read + drawn) + 0.2 * (5 * read + 10 * drawn))
        assert found.spending.low < found.spending.high
        return found.spending

    free = planned({"by": "cascade", "budget": 100, "calibration_prompts": 2})
    assert free.high == pytest.approx(2 * (free.dearest + free.low - 0.2 * free.dearest))
    bound = planned({"by": "cascade", "budget": 0.03, "calibration_prompts": 2})
    assert bound.high == bound.budget == 0.03
