"""Whether the evaluation set was seen before: in the lessons, and in the silos' records.

A student that answers a mail it was taught, or that its teacher was shown, shows its memory and not its skill. A text
counts as seen where it shares 13 words in a row with another (the length that Brown et al. 2020, arXiv:2005.14165,
appendix C, took), or is its near-duplicate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tutelage.configs.records import Metric
from tutelage.privacy.attacks.overlap_audit import NEAR_DUPLICATE_JACCARD
from tutelage.privacy.overlap import Corpus
from tutelage.privacy.stats import missing_metric, share_metric

RUN_WORDS = 13


def seen(corpus: Corpus, evaluation: Sequence[str]) -> int:
    """How many texts of the evaluation set were seen in the corpus."""
    found = corpus.copying(evaluation)
    return sum(run >= RUN_WORDS or jaccard >= NEAR_DUPLICATE_JACCARD for run, _, jaccard in found)


def summarise(in_lessons: int | None, in_silos: Mapping[str, int], n: int) -> tuple[Metric, Metric]:
    """Contamination of an evaluation set.

    Args:
        in_lessons: `seen` among the lessons; None: not measured.
        in_silos: Silo -> `seen` among its records.
        n: Size of the evaluation set.

    Returns:
        `contamination.lessons_share`, and `contamination.silos_share`, which is internal and an upper bound: a text
        that two silos hold counts twice.
    """
    lessons = missing_metric("contamination.lessons_share", n=n)
    if in_lessons is not None:
        lessons = share_metric("contamination.lessons_share", in_lessons, n)
    silos = missing_metric("contamination.silos_share", n=n, internal=True)
    if in_silos:
        hits = min(sum(in_silos.values()), n)
        silos = share_metric("contamination.silos_share", hits, n, internal=True, note="an upper bound over silos")
    return lessons, silos
