"""Which pairs reviewers' decisions make, against the definition; and that only verified lessons are in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lesson_sets import signed

from tutelage.configs.errors import PrivacyError
from tutelage.privacy import release, review
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.pii import Scrubbed
from tutelage.privacy.preferences import Preferences, preferences
from tutelage.privacy.release import LessonSet, reviewed

PROMPTS = st.sampled_from(["the printer", "the\r\nprinter", "the garden"])
COMPLETIONS = st.sampled_from(["is out of paper", "is out  of paper", "is on fire", ""])
DECIDED = st.tuples(st.sampled_from([None, "accept", "reject", "edit"]), PROMPTS, COMPLETIONS)


class Unchanged:
    """A scrubber that finds nothing."""

    def scrub_many(self, texts: Sequence[str]) -> list[Scrubbed]:
        return [Scrubbed(text, {}) for text in texts]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SiloKey]:
    folder = tmp_path_factory.mktemp("keys") / "vault"
    return {name: SiloKey.create(folder / f"{name}.pem") for name in ("silo-0", "silo-1", review.SILO)}


def decide(lesson: str, verdict: Any, prompt: str = "", completion: str = "") -> review.Decision:
    texts = {"prompt": prompt, "completion": completion} if verdict == "edit" else {}
    return review.Decision(lesson=lesson, verdict=verdict, by="ann", at="2026-01-01T00:00:00+00:00", **texts)


def made(released: LessonSet, decisions: dict[str, review.Decision], keys: dict[str, SiloKey]) -> Preferences:
    scrubber: Any = Unchanged()
    return preferences(released, reviewed(released, decisions, key=keys[review.SILO], scrubber=scrubber), decisions)


def plain(text: str) -> str:
    return " ".join(text.split())


@settings(max_examples=200)
@given(
    first=st.lists(st.tuples(PROMPTS, COMPLETIONS, DECIDED), max_size=5, unique_by=lambda row: row[:2]),
    second=st.lists(st.tuples(PROMPTS, COMPLETIONS, DECIDED), max_size=5, unique_by=lambda row: row[:2]),
)
def test_pairs_are_those_of_the_definition(
    first: list[Any], second: list[Any], keys: dict[str, SiloKey], tmp_path_factory: pytest.TempPathFactory
) -> None:
    by_silo = {"silo-0": first, "silo-1": second}
    sets = [signed(keys[silo], [row[:2] for row in rows], silo=silo) for silo, rows in by_silo.items()]
    advice = signed(keys["silo-0"], [("Sort them.", "")], kind="instruction")
    released, rows = LessonSet.combine([*sets, advice]), [*first, *second]
    decisions = {one.id: decide(one.id, *row[2]) for one, row in zip(released, rows, strict=False) if row[2][0]}
    decisions[advice.lessons[0].id] = decide(advice.lessons[0].id, "edit", "Sort them.", "so")

    better, expected = [], []
    for i, (prompt, completion, (verdict, new_prompt, new_completion)) in enumerate(rows):
        if verdict == "accept":
            better.append((i, prompt, completion))
        elif verdict == "edit" and plain(new_prompt) == plain(prompt):
            better.append((i, new_prompt, new_completion))
    for i, (prompt, completion, (verdict, *_)) in enumerate(rows):
        for j, good_prompt, good in better:
            same = plain(good_prompt) == plain(prompt) and plain(good) != plain(completion)
            if same and (verdict == "reject" or (verdict == "edit" and i == j)):
                expected.append((good_prompt, good, completion))

    found = made(released, decisions, keys)
    assert [(a.prompt, a.completion, b.completion) for a, b in found.pairs()] == expected
    assert made(released, dict(reversed(decisions.items())), keys).pairs() == found.pairs()
    paired = [{one.id for one in side} for side in (zip(*found.pairs(), strict=True) if expected else ((), ()))]
    assert [{one.id for one in side} for side in (found.chosen, found.rejected)] == paired, "none without a pair"

    folder, public = tmp_path_factory.mktemp("kept"), {name: key.public_hex for name, key in keys.items()}
    again = Preferences(
        *(
            LessonSet.load(side.save(folder / f"{name}.jsonl"), "run", public)
            for name, side in (("chosen", found.chosen), ("rejected", found.rejected))
        )
    )
    assert again.pairs() == found.pairs()


def test_an_edit_is_signed_by_the_run_and_what_it_was_by_its_silo(keys: dict[str, SiloKey], tmp_path: Path) -> None:
    released = signed(keys["silo-0"], [("the printer", "is on fire"), ("the garden", "is green")])
    first, second = (one.id for one in released)
    decisions = {
        first: decide(first, "edit", "the printer", "is out of paper"),
        second: decide(second, "edit", "the yard", "is grey"),
    }
    found = made(released, decisions, keys)
    assert [(one.silo, one.completion) for one in found.chosen] == [(review.SILO, "is out of paper")]
    assert [(one.silo, one.completion) for one in found.rejected] == [("silo-0", "is on fire")]
    path = found.chosen.save(tmp_path / "chosen.jsonl")
    path.write_text(path.read_text().replace("paper", "money"))
    with pytest.raises(PrivacyError, match="signature"):
        LessonSet.load(path, "run", {review.SILO: keys[review.SILO].public_hex})


def test_only_verified_lessons_make_pairs(keys: dict[str, SiloKey]) -> None:
    released = signed(keys["silo-0"], [("the printer", "is on fire")])
    unverified: Any = list(released)
    for sides in ((unverified, released), (released, unverified)):
        with pytest.raises(PrivacyError, match="verified"):
            Preferences(*sides)
    with pytest.raises(PrivacyError, match="different runs"):
        Preferences(released, LessonSet([], "another", release._SEAL))
