"""The next round's topics, from a round's aggregates on released text. The only thing that flows back."""

from __future__ import annotations

from collections.abc import Mapping

# Every class keeps at least this share of an equal split, so that none is forgotten on one bad estimate.
_FLOOR = 0.5


def next_topics(recall: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Ask more of the classes the student gets wrong.

    Args:
        recall: Class -> (right, all) of the student on released lessons it was not trained on.

    Returns:
        Class -> share of the next round's prompts, summing to 1. Empty in, empty out.
    """
    if not recall:
        return {}
    # Laplace-smoothed error rates: two wrong of three is weak evidence.
    errors = {name: (n - right + 1) / (n + 2) for name, (right, n) in recall.items()}
    total = sum(errors.values())
    floor = _FLOOR / len(errors)
    return {name: floor + (1 - _FLOOR) * error / total for name, error in sorted(errors.items())}
