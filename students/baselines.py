"""The line an engineer will ask for: TF-IDF and logistic regression on the same lessons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.configs.records import Example
from tutelage.students.evaluate import Predictions


def tfidf(train: Sequence[Example], test: Sequence[Example], labels: Sequence[str]) -> Predictions:
    """Fit word 1- and 2-grams with logistic regression on `train`, and predict `test`.

    Args:
        train: Lessons, or originals for the reference, with at least two different completions.
        test: The texts; their completions aren't looked at.
        labels: The labels, for the order of the scores; one that `train` lacks is never predicted.

    Returns:
        Predicted labels and log-probabilities (n, labels), in the order of `test`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
    pipeline.fit([example.prompt for example in train], [example.completion for example in train])
    known = pipeline.predict_log_proba([example.prompt for example in test])
    scores = np.full((len(test), len(labels)), -np.inf)
    for column, label in enumerate(pipeline.classes_):
        scores[:, list(labels).index(label)] = known[:, column]
    return Predictions(tuple(labels), scores)
