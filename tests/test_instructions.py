"""The teacher's advice: what is asked for, what is cut, and which silo's wording the student gets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles import CopyingTeacher, HonestTeacher, ScriptedEngine
from lesson_sets import signed, verified

from tutelage.configs.schema import ClassificationTask, TeachConfig
from tutelage.privacy.drafts import Draft
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.release import LessonSet
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.instructions import choose_instruction, write_instruction
from tutelage.teachers.teacher import Solo

MAIL = ClassificationTask(description="Sort mail.", labels={"ham": "wanted mail", "spam": "unwanted mail"})
RECORDS = [PrivateRecord(str(i), f"private text number {i}.", ("ham", "spam")[i % 2]) for i in range(20)]


class Scripted(ScriptedEngine):
    """Answers with given generations."""

    def __init__(self, answers: Sequence[Generation]) -> None:
        super().__init__()
        self.answers = answers

    def chat(self, system: str, user: str) -> str:
        return f"{system}|{user}|"

    def write(self, prompt: str, draw: random.Random, j: int) -> str | Generation:
        return self.answers[j] if j < len(self.answers) else ""


def write(engine: Any, config: TeachConfig | None = None, **changes: Any) -> tuple[Draft, ...]:
    settings: dict[str, Any] = {"silo": "north", "round": 2, "seed": 0, **changes}
    return write_instruction(Solo(engine, MAIL), RECORDS, task=MAIL, config=config or TeachConfig(), **settings)


def test_the_public_description_asks_no_teacher() -> None:
    engine = Scripted([])
    assert write(engine, TeachConfig(instruction="description")) == ()
    assert engine.calls == []


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        ("Look twice. Be wary", True, "Look twice."),
        ("Look twice! Why? Here is some more advice:", True, "Look twice! Why?"),
        ("Here is some advice:", True, None),
        ("  Look twice. ", True, "Look twice."),
        ("Look twice. Be wary of of", False, "Look twice."),
        ("Look twice. Be wary.", False, "Look twice. Be wary."),
        ("Look twice and be", False, None),
        ("", True, None),
        ("  ", True, None),
        ("...", False, "..."),
    ],
)
def test_wordings_end_at_a_full_stop(text: str, finished: bool, expected: str | None) -> None:
    drafts = write(Scripted([Generation(text, finished), Generation("Another one.", True)]))
    assert [draft.prompt for draft in drafts] == [one for one in (expected, "Another one.") if one]
    assert all((draft.kind, draft.completion) == ("instruction", "") for draft in drafts)
    assert all(draft.prompt_version == prompts.VERSION for draft in drafts)
    assert drafts[-1].id == "north-r2-instruction-1"


def test_what_the_teacher_is_shown() -> None:
    engine = Scripted([Generation("Look twice.", True)] * 4)
    write(engine, TeachConfig(references_per_prompt=3, temperature=2.0, top_k=7))
    [([prompt], n, sampling, _)] = engine.calls
    assert n == 4
    assert prompt.count("private text number") == 6
    assert prompts.public_instruction(MAIL) in prompt
    assert (sampling.stop, sampling.top_k) == ("\n", 7)
    assert sampling.temperature <= 0.7
    write(engine, TeachConfig(references_per_prompt=0))
    assert "private text" not in engine.calls[1][0][0]


def test_seed_silo_and_round_decide_the_references() -> None:
    engine = Scripted([])
    changes: list[dict[str, Any]] = [{}, {}, {"seed": 1}, {"silo": "south"}, {"round": 3}]
    for change in changes:
        write(engine, **change)
    first, again, *others = [(asked[0][0], asked[3]) for asked in engine.calls]
    assert first == again
    assert len({first, *others}) == 4


def test_the_doubles_write_instructions() -> None:
    assert len(write(HonestTeacher())) == 4
    assert any("private text" in draft.prompt for draft in write(CopyingTeacher()))


# ---- the choice -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SiloKey:
    return SiloKey.create(tmp_path_factory.mktemp("run") / "vault" / "key.pem")


WORDINGS = [
    "The soup needs more salt and a little pepper.",
    "Check whether the sender of the mail wants to sell something.",
    "See if the sender wants to sell you something in the mail.",
    "Ask whether the mail tries to sell something to you.",
]


def test_the_wording_most_like_the_others_is_chosen(key: SiloKey, tmp_path: Path) -> None:
    examples = signed(key, [("Soup, salt and pepper with a little soup.", "ham")] * 1)
    for order in (WORDINGS, WORDINGS[::-1]):
        wordings = signed(key, [(text, "") for text in order], kind="instruction")
        chosen = choose_instruction(verified(LessonSet.combine([examples, wordings]), key, tmp_path))
        assert chosen in WORDINGS[1:]
        assert chosen == choose_instruction(wordings)


def test_one_wording_is_chosen_and_none_gives_none(key: SiloKey) -> None:
    one = signed(key, [(WORDINGS[0], "")], kind="instruction")
    assert choose_instruction(one) == WORDINGS[0]
    assert choose_instruction(signed(key, [])) is None
    assert choose_instruction(signed(key, [("text", "ham")])) is None
