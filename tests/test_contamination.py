"""An evaluation set that was seen is found, in lessons and in silos; one that was not is not."""

from __future__ import annotations

import math
import random

from tutelage.privacy.attacks import contamination
from tutelage.privacy.overlap import Corpus
from tutelage.privacy.vault import PrivateRecord

WORDS = [f"word{i}" for i in range(400)]


def texts(seed: int, count: int = 30, length: int = 25) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


def index(held: list[str]) -> Corpus:
    return Corpus([PrivateRecord(str(i), text, "") for i, text in enumerate(held)])


def test_copies_quotations_and_near_duplicates_are_seen_and_others_are_not() -> None:
    evaluation, others = texts(1), texts(2)
    assert contamination.seen(index(others), evaluation) == 0
    quoted = "Before it. " + " ".join(evaluation[0].split()[5:18]) + " and after"
    almost = " ".join([*evaluation[1].split()[:-2], "another", "end"])
    shorter = " ".join(evaluation[2].split()[5:15])
    held = [*others, quoted, almost, shorter, evaluation[3].upper()]
    assert contamination.seen(index(held), evaluation) == 3  # ten words in a row are not enough


def test_figures() -> None:
    lessons, silos = contamination.summarise(3, {"a": 2, "b": 1}, 30)
    assert (lessons.value, lessons.n, lessons.internal) == (0.1, 30, False)
    assert lessons.ci_low < 0.1 < lessons.ci_high
    assert (silos.value, silos.internal) == (0.1, True)
    assert contamination.summarise(0, {"a": 20, "b": 20}, 30)[1].value == 1  # one text may be in both
    assert all(math.isnan(metric.value) for metric in contamination.summarise(None, {}, 30))
    assert all(math.isnan(metric.value) for metric in contamination.summarise(0, {"a": 0}, 0))
