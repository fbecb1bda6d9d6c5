"""Pairs of released lessons of which reviewers preferred one: what direct preference optimisation trains on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.configs.errors import PrivacyError
from tutelage.configs.records import Example, Lesson
from tutelage.privacy import review
from tutelage.privacy.release import LessonSet


@dataclass(frozen=True)
class Preferences:
    """Better and worse answers to the same prompts. Which go together follows from the lessons themselves.

    Raises:
        PrivacyError: one of the two is not a `LessonSet`, or they are of different runs.
    """

    chosen: LessonSet
    """Accepted lessons, and edited ones whose prompt was left as it was."""
    rejected: LessonSet
    """Rejected lessons, and what edited ones were before: these have the same id as the edited one among the chosen."""

    def __post_init__(self) -> None:
        if not isinstance(self.chosen, LessonSet) or not isinstance(self.rejected, LessonSet):
            raise PrivacyError("preferences are pairs of verified lessons only")
        if self.chosen.run_id != self.rejected.run_id:
            raise PrivacyError("lessons of different runs make no pairs")

    def pairs(self) -> list[tuple[Example, Example]]:
        """(chosen, rejected), in the order of the rejected ones, then of the chosen ones.

        A pair has one prompt and two completions, white space aside. What an edited lesson was before is worse than
        the edited one; nothing is known of it beside others.
        """
        ids = {one.id for one in self.chosen}
        answers: dict[str, list[Lesson]] = defaultdict(list)
        for one in self.chosen:
            answers[_plain(one.prompt)].append(one)
        return [
            (better.example(), worse.example())
            for worse in self.rejected
            for better in answers[_plain(worse.prompt)]
            if _plain(better.completion) != _plain(worse.completion)
            if worse.id not in ids or worse.id == better.id
        ]


def preferences(released: LessonSet, kept: LessonSet, decisions: Mapping[str, review.Decision]) -> Preferences:
    """What reviewers said about pairs of lessons; lessons that make no pair are left out, instructions always.

    Args:
        released: Lessons as their silos released them.
        kept: What `reviewed` made of these under the same decisions.
        decisions: Lesson id -> decision; those about other lessons are passed over.
    """
    after = {one.id: one for one in kept}
    better, worse = [], []
    for lesson in released:
        verdict = decisions[lesson.id].verdict if lesson.id in decisions and lesson.kind == "example" else "open"
        kept_as = after.get(lesson.id)  # an edit that fits no structure leaves none
        edited = verdict == "edit" and kept_as is not None and _plain(kept_as.prompt) == _plain(lesson.prompt)
        better += [lesson.id] if verdict == "accept" or edited else []
        worse += [lesson.id] if verdict == "reject" or edited else []
    pairs = Preferences(kept.select(better), released.select(worse)).pairs()
    chosen, rejected = ({one.id for one in side} for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    return Preferences(
        kept.select(one for one in better if one in chosen), released.select(one for one in worse if one in rejected)
    )


def _plain(text: str) -> str:
    """The text with every run of white space as one space: a form in a browser sends other line ends than it got."""
    return " ".join(text.split())
