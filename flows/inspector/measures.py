"""What is computed of all released texts at once, in a process of its own: it may take minutes, and pages wait for none
of it. Results are kept in the cache, so that a run opened again has them at once, and a stopped computation goes on."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.configs.models import cache_dir
from tutelage.configs.records import Lesson
from tutelage.configs.store import digest, write_atomic
from tutelage.flows.workers import Workers

NEAR_DUPLICATE = 0.7
"""Jaccard index of word 3-grams from which two texts nearly repeat each other."""
_CHUNK = 1024
_BLEU_SAMPLE = 100
_MAP_SAMPLE = 1000
_VERSION = 1


@dataclass
class Measures:
    """What is known so far of a run's released texts.

    Args:
        lessons: All of them, in order.
    """

    lessons: Sequence[Lesson]
    progress: str = "waiting"
    """In words, for the pages; empty when all is computed."""
    embeddings: np.ndarray | None = None
    """(texts, 384), rows of unit norm."""
    twins: np.ndarray | None = None
    """(texts,): numbers of the groups of near-duplicates."""
    diversity: list[dict[str, Any]] = field(default_factory=list)
    """One for each round and kind; see `diversity_of`."""
    points: list[tuple[int, float, float]] = field(default_factory=list)
    """Of a sample: place, and where it lies on the plane of the two widest directions, in [0, 1]."""
    spread: float = 0.0
    """The share of the embeddings' variance that lies in that plane."""

    def neighbours(self, place: int, count: int) -> list[tuple[int, float]]:
        """The texts nearest in meaning to one of them: place, cosine. None before embeddings are computed."""
        if self.embeddings is None:
            return []
        cosines = self.embeddings @ self.embeddings[place]  # (texts,)
        cosines[place] = -np.inf
        count = min(count, len(cosines) - 1)
        nearest = np.argpartition(-cosines, count - 1)[:count] if count > 0 else np.zeros(0, dtype=int)
        return sorted(((int(i), float(cosines[i])) for i in nearest), key=lambda pair: -pair[1])

    def fit(self, labels: Sequence[str]) -> np.ndarray | None:
        """Cosine of every text to the middle of its label's other texts, minus that to the nearest other label's.

        Args:
            labels: (texts,); empty for those that have none.

        Returns:
            (texts,), NaN for those without a label, and for a label's only text; None where there are no two labels.
        """
        names = sorted(set(labels) - {""})
        if self.embeddings is None or len(names) < 2:
            return None
        own = np.array([names.index(label) if label else -1 for label in labels])
        sums = np.stack([self.embeddings[own == i].sum(axis=0) for i in range(len(names))])  # (labels, 384)
        cosines = self.embeddings @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T  # (texts, labels)
        rows = np.flatnonzero(own >= 0)
        others = cosines[rows].copy()
        others[np.arange(len(rows)), own[rows]] = -np.inf
        rest = sums[own[rows]] - self.embeddings[rows]
        norms = np.linalg.norm(rest, axis=1)
        fit = np.full(len(labels), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            fit[rows] = (self.embeddings[rows] * rest).sum(axis=1) / norms - others.max(axis=1)
        fit[rows[norms < 1e-6]] = np.nan
        return fit


class Computing:
    """The computation, beside whatever this process does.

    Args:
        measures: Filled in as results come.
        done: Called when everything is there.
    """

    def __init__(self, measures: Measures, done: Callable[[], None]) -> None:
        self._measures, self._done = measures, done
        texts = [lesson.prompt for lesson in measures.lessons]
        name = digest([_VERSION, [lesson.id for lesson in measures.lessons], texts])
        self._folder = cache_dir() / "inspect" / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pool = None if self._finished else Workers(1)
        self.thread = threading.Thread(target=self._watch, args=(texts,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End it; what is computed so far is kept."""
        if self._pool:
            self._pool.stop()

    @property
    def _finished(self) -> bool:
        return (self._folder / "done.json").exists()

    def _watch(self, texts: list[str]) -> None:
        if self._pool:
            worker = threading.Thread(target=self._work, args=(texts,), daemon=True)
            worker.start()
            while worker.is_alive():
                self._measures.progress = _progress(self._folder, len(texts))
                worker.join(0.5)
        if not self._finished:
            self._measures.progress = "neighbours, duplicates and diversity could not be computed"
            return
        found = json.loads((self._folder / "done.json").read_text())
        measures = self._measures
        measures.embeddings = np.load(self._folder / "embeddings.npy")
        measures.twins, measures.diversity = np.array(found["twins"], dtype=np.int64), found["diversity"]
        measures.points, measures.spread = plane(measures.embeddings)
        self._done()
        measures.progress = ""

    def _work(self, texts: list[str]) -> None:
        groups: dict[tuple[int, str], list[int]] = {}
        for place, one in enumerate(self._measures.lessons):
            groups.setdefault((one.round, one.kind), []).append(place)
        assert self._pool is not None
        with contextlib.suppress(Exception):  # then nothing is there, and the pages say so
            self._pool.run(_compute, self._folder, texts, groups)
        self._pool.stop()


def _progress(folder: Path, texts: int) -> str:
    try:
        done = int((folder / "embedded").read_text())
    except (OSError, ValueError):
        done = 0
    return f"embedding: {done:,} of {texts:,} texts" if done < texts else "comparing texts"


def _compute(folder: Path, texts: list[str], groups: dict[tuple[int, str], list[int]]) -> None:
    """In the worker."""
    from tutelage.privacy.near_duplicates import near_duplicate_groups
    from tutelage.privacy.similarity import EMBEDDING_DIM, embed

    path, counter = folder / "embeddings.npy", folder / "embedded"
    shape = (len(texts), EMBEDDING_DIM)
    try:
        begun = int(counter.read_text())
        held = np.lib.format.open_memmap(path, mode="r+")
        if held.shape != shape:
            raise ValueError
    except (OSError, ValueError):
        begun, held = 0, np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))  # alike in length, little padding
    for start in range(begun, len(texts), _CHUNK):
        chosen = order[start : start + _CHUNK]
        held[chosen] = embed([texts[i] for i in chosen])
        held.flush()
        write_atomic(counter, str(start + len(chosen)))
    diversity = [
        {"round": round, "kind": kind, **diversity_of([texts[i] for i in places])}
        for (round, kind), places in groups.items()
    ]
    twins = near_duplicate_groups(texts, NEAR_DUPLICATE).tolist()
    write_atomic(folder / "done.json", json.dumps({"twins": twins, "diversity": diversity}))


def diversity_of(texts: Sequence[str]) -> dict[str, Any]:
    """How little some texts repeat themselves and each other.

    Returns:
        `texts`; `words` in all; `distinct_1` to `distinct_3`: different word n-grams over all of them (Li et al. 2016,
        A Diversity-Promoting Objective Function, sec. 5.2), which falls as a set grows; `self_bleu`: mean BLEU of a
        text against the others, over a sample of `sample` texts (Zhu et al. 2018, Texygen, sec. 3.2). None: too few.
    """
    from sacrebleu.metrics import BLEU

    from tutelage.privacy.similarity import words

    tokens = [words(text) for text in texts]
    found: dict[str, Any] = {"texts": len(texts), "words": sum(map(len, tokens))}
    for n in (1, 2, 3):
        grams = Counter(tuple(one[i : i + n]) for one in tokens for i in range(len(one) - n + 1))
        found[f"distinct_{n}"] = len(grams) / grams.total() if grams else None
    drawn = random.Random(0).sample(list(texts), min(len(texts), _BLEU_SAMPLE))
    found |= {"sample": len(drawn), "self_bleu": None}
    if len(drawn) > 1:
        bleu = BLEU(effective_order=True)
        scores = [bleu.sentence_score(text, [*drawn[:i], *drawn[i + 1 :]]).score for i, text in enumerate(drawn)]
        found["self_bleu"] = sum(scores) / len(scores) / 100
    return found


def plane(embeddings: np.ndarray) -> tuple[list[tuple[int, float, float]], float]:
    """Where a sample of texts lies on the plane of its two widest directions (principal components).

    Args:
        embeddings: (texts, d).

    Returns:
        Place and two coordinates in [0, 1] of up to 1,000 texts, and the share of their variance that the plane holds.
    """
    if len(embeddings) < 3:
        return [], 0.0
    drawn = np.sort(np.random.default_rng(0).permutation(len(embeddings))[:_MAP_SAMPLE])
    centred = embeddings[drawn] - embeddings[drawn].mean(axis=0)
    left, widths, _ = np.linalg.svd(centred, full_matrices=False)
    flat = left[:, :2] * widths[:2]
    low, high = flat.min(axis=0), flat.max(axis=0)
    scaled = (flat - low) / np.maximum(high - low, 1e-9)
    variance = widths**2
    share = float(variance[:2].sum() / variance.sum()) if variance.sum() > 0 else 0.0
    return [(int(place), float(x), float(y)) for place, (x, y) in zip(drawn, scaled, strict=True)], share
