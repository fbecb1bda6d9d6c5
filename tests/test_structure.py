"""What answers must look like: which structures are taken, what fits them, and the two steps of writing an example."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles import ScriptedEngine, fitting
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tutelage.configs.errors import UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.schema import GenerationTask, Structure, TeachConfig
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import prompts
from tutelage.teachers.examples import Written, write_examples
from tutelage.teachers.teacher import Solo

CALL = {
    "type": "object",
    "properties": {
        "tool": {"enum": ["search", "send"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 9},
    },
    "required": ["tool", "count"],
    "additionalProperties": False,
}
STRUCTURES = [Structure(json_schema=CALL), Structure(choice=("yes", "no", "yes, but")), Structure(regex="[a-c]{2,4}")]


# ---- which are taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one"),
        ({"regex": "a", "choice": ["a", "b"]}, "exactly one"),
        ({"choice": ["a"]}, "at least 2"),
        ({"choice": ["a", "a"]}, "twice"),
        ({"choice": ["a", " b"]}, "white space"),
        ({"choice": [True, False]}, "valid string"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"json_schema": {"type": "objekt"}}, "objekt"),
        ({"json_schema": {"$ref": "https://example.org/schema"}}, "not present"),
        ({"json_schema": {"not": {}}}, "not"),
        ({"schema": {}}, "Extra"),
    ],
)
def test_a_structure_that_means_nothing_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Structure.model_validate(given)


DEMO = yaml.safe_load((Path(__file__).parent.parent / "configs" / "demo.yaml").read_text())


def recipe(completion: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data = copy.deepcopy(DEMO)
    data["task"] = {"kind": "generation", "description": "Call the tool.", "completion": completion}
    data["data"]["records"] = {"source": "files", "path": "calls.jsonl"}
    return {**data, **changes}


def test_a_recipe_says_what_a_completion_must_be(tmp_path: Path) -> None:
    task = parse_recipe(recipe({"json_schema": CALL})).task
    assert isinstance(task, GenerationTask)
    assert task.completion == STRUCTURES[0]
    with pytest.raises(UserError, match="unclosed group") as caught:
        parse_recipe(recipe({"regex": "(a"}), tmp_path / "recipe.yaml")
    assert caught.value.key == "task.completion"


def test_what_cannot_keep_to_it_is_refused() -> None:
    privacy = {"mechanism": "private_prediction", "epsilon": 4.0}
    with pytest.raises(UserError, match=r"task\.completion is not kept to by private_prediction"):
        parse_recipe(recipe({"regex": "a+"}, teach={}, privacy=privacy))
    parse_recipe(recipe({"regex": "a+"}, teach={}, privacy={**privacy, "mechanism": "private_evolution"}, attack={}))
    server = {"kind": "openai", "url": "http://127.0.0.1/v1", "extensions": False}
    with pytest.raises(UserError, match="must be a json_schema"):
        parse_recipe(recipe({"regex": "a+"}, teach={"engine": server}))
    parse_recipe(recipe({"json_schema": CALL}, teach={"engine": server}))


# ---- what fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES, ids=["json_schema", "choice", "regex"])
@given(st.integers(0, 2**32))
def test_what_is_drawn_from_a_structure_fits_it(structure: Structure, seed: int) -> None:
    text = fitting(structure, random.Random(seed))
    read = structure.read(text)
    assert read is not None
    assert structure.read(read) == read
    if structure.json_schema is None:
        assert read == text
    else:  # an escape may be written in two ways
        assert json.loads(read) == json.loads(text)


@given(st.sampled_from(["search", "send"]), st.integers(0, 99), st.text(max_size=9), st.sampled_from([None, 1, "\t"]))
def test_json_is_read_into_one_form(tool: str, count: int, note: str, indent: Any) -> None:
    call = {"tool": tool, "count": count, "note": note.encode(errors="replace").decode()}
    found = STRUCTURES[0].read(json.dumps(call, indent=indent))
    assert found is not None
    assert json.loads(found) == call
    assert STRUCTURES[0].read(found) == found


@pytest.mark.parametrize(
    ("structure", "text"),
    [
        *((STRUCTURES[0], json.dumps(one)) for one in ({}, [], {"tool": "send"}, {"tool": "send", "count": 100})),
        (STRUCTURES[0], '{"tool":"send","count":1,"more":1}'),
        (STRUCTURES[0], '{"tool":"send","count":1'),
        (STRUCTURES[0], "[" * 100_000),
        (STRUCTURES[0], '{"tool":"\ud800","count":1}'),
        *((STRUCTURES[1], one) for one in ("", "Yes", "yes,", "yes, but no", "y")),
        *((STRUCTURES[2], one) for one in ("", "a", "abcab", "abd", "ab\n")),
    ],
)
def test_what_does_not_fit_is_not_read(structure: Structure, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert structure.read(text) is None
    assert "".join(capfd.readouterr()) == "", "a warning would quote the text"


# ---- two steps ------------------------------------------------------------------------------------------------------


RECORDS = [PrivateRecord(f"q{i}", f"Send note {i}.", '{"tool": "send", "count": 1}') for i in range(6)]
TEACH = TeachConfig(prompts_per_label=2, references_per_prompt=1, drafts_per_prompt=3, keep_per_prompt=3)


class Asking(ScriptedEngine):
    """Writes prompts of an example, as given."""

    def __init__(self, *written: str) -> None:
        super().__init__()
        self.written = written

    def write(self, prompt: str, draw: random.Random, j: int) -> str:
        return self.written[j]


def write(engine: Any, structure: Structure) -> Written:
    task = GenerationTask(description="Call the tool.", completion=structure)
    teacher = Solo(engine, task)
    return write_examples(teacher, RECORDS, task=task, config=TEACH, topics={}, silo="north", round=1, seed=0)


@pytest.mark.parametrize("structure", STRUCTURES, ids=["json_schema", "choice", "regex"])
def test_a_completion_is_written_in_a_step_of_its_own(structure: Structure) -> None:
    engine = Asking(" Send it to all.\n", " Find it.", "Count\nthem. ")
    written = write(engine, structure)
    assert (written.sampled, written.malformed, len(written.drafts)) == (6, 0, 6)
    assert {one.prompt for one in written.drafts} == {"Send it to all.", "Find it.", "Count\nthem."}
    assert all(structure.read(one.completion) == one.completion for one in written.drafts)
    first, second = engine.calls
    assert (first.sampling.stop, first.sampling.structure, first.n) == (prompts.ANSWER, None, 3)
    assert (second.sampling.stop, second.sampling.structure, second.n) == (prompts.STOP, structure, 1)
    assert second.prompts[0] == f"{first.prompts[0]} Send it to all.\nCompletion: "
    assert second.seed != first.seed


def test_a_prompt_that_is_none_is_not_answered() -> None:
    engine = Asking(" ", " One.\n### question 3\nPrompt: two", " Three.")
    written = write(engine, STRUCTURES[2])
    assert {one.prompt for one in written.drafts} == {"Three."}
    assert [len(call.prompts) for call in engine.calls] == [2, 2, 2, 2], "asked again once, as malformed ones are"
    assert (written.sampled, written.malformed) == (12, 8)


def test_a_completion_that_does_not_fit_is_malformed() -> None:
    """A server may take no heed of what it was asked for."""

    class Deaf(Asking):
        def generate(self, prompts: Any, n: int, sampling: Any, seed: int, on_progress: Any = None) -> Any:
            import dataclasses

            return super().generate(prompts, n, dataclasses.replace(sampling, structure=None), seed, on_progress)

    written = write(Deaf("abc", "abcabc", "abc"), STRUCTURES[2])
    assert {one.completion for one in written.drafts} == {"abc"}
    assert written.malformed == 0, "every completion is the first text of a prompt of its own"
    assert write(Deaf("abcabc", "x", "y"), STRUCTURES[2]).drafts == ()
