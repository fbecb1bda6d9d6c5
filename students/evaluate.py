"""How good a student is: answers, metrics with 95% intervals, label calibration, forgetting.

The figures come from the `evaluate` modules in `metrics/`, the intervals are Wilson's for shares and a seeded
percentile bootstrap for the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.configs.progress import Bar
from tutelage.configs.records import Example, Metric
from tutelage.privacy.stats import mean_metric, missing_metric, share_metric
from tutelage.students import score
from tutelage.students.chat import completion_ids, end_of_turn_id, pad_id, prompt_ids, prompt_messages

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METRICS = Path(__file__).parent / "metrics"


@dataclass(frozen=True)
class Predictions:
    """How likely each label was for every text, and the choice made from that."""

    choices: tuple[str, ...]
    scores: np.ndarray
    """(n, choices): log-probabilities of the labels."""

    @property
    def labels(self) -> tuple[str, ...]:
        """(n,): the likeliest."""
        return self.without(np.zeros(len(self.choices)))

    def without(self, bias: np.ndarray) -> tuple[str, ...]:
        """(n,): the likeliest once a bias (choices,) is taken off the scores, as `calibrate` makes it."""
        return tuple(self.choices[i] for i in (self.scores - bias).argmax(1))


def classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Sequence[Example],
    labels: Sequence[str],
    *,
    instruction: str | None,
    batch_rows: int,
    few_shot: Sequence[Example] = (),
    progress: str | None = None,
) -> Predictions:
    """How likely each label is as the answer to every text.

    Args:
        model: The student in evaluation mode.
        tokenizer: Its tokenizer.
        test: The texts; their completions aren't looked at.
        labels: The labels to choose from.
        instruction: The system prompt, if any.
        batch_rows: Texts computed together.
        few_shot: Solved examples put before the text.
        progress: What to call the progress bar; None: no bar.

    Returns:
        Scores in the order of `test`.
    """
    prompts = [prompt_messages(example.prompt, instruction, few_shot) for example in test]
    tokens = [completion_ids(tokenizer, label) for label in labels]
    # A label that begins another one is its rival's first half unless it must also end there.
    nested = any(b[: len(a)] == a for a, b in itertools.permutations(tokens, 2))
    scores = score.label_scores(model, tokenizer, prompts, labels, batch_rows, end_of_turn=nested, progress=progress)
    return Predictions(tuple(labels), scores)


def calibrate(scores: np.ndarray) -> np.ndarray:
    """The bias of a prompt towards each label, from texts that are balanced over the labels.

    Batch calibration (Zhou et al. 2023, arXiv:2309.17249; in the line of contextual calibration, Zhao et al. 2021,
    arXiv:2102.09690), with the mean taken over log-probabilities, which confident texts don't dominate.

    Args:
        scores: (n, labels), as in `Predictions.scores`, on *released* lessons: these are public to the student, so
            calibrating on them costs no privacy.

    Returns:
        (labels,): the mean log-probability of each label among the labels.
    """
    table = np.asarray(scores, dtype=np.float64)
    bias: np.ndarray = (table - np.logaddexp.reduce(table, axis=1, keepdims=True)).mean(0)
    return bias


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Sequence[Example],
    *,
    instruction: str | None,
    max_new_tokens: int,
    batch_rows: int,
    few_shot: Sequence[Example] = (),
    progress: bool = True,
) -> list[str]:
    """Greedy answers to the prompts of `test`, in its order; arguments as for `classify`.

    Args:
        model: The student in evaluation mode.
        tokenizer: Its tokenizer.
        test: The prompts; their completions aren't looked at.
        instruction: The system prompt, if any.
        max_new_tokens: Where an answer is cut off.
        batch_rows: Prompts decoded together.
        few_shot: Solved examples put before the prompt.
        progress: Whether to show a bar, if standard error is a terminal.
    """
    import torch
    from transformers import GenerationConfig

    rows = [prompt_ids(tokenizer, prompt_messages(example.prompt, instruction, few_shot)) for example in test]
    pad = pad_id(tokenizer)
    stops = {end_of_turn_id(tokenizer)} | ({tokenizer.eos_token_id} - {None})
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=sorted(stops)
    )
    answers = [""] * len(rows)
    generate: Any = model.generate
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with Bar(len(rows), "answers" if progress else None, "text") as bar:
        for start in range(0, len(order), batch_rows):
            batch = order[start : start + batch_rows]
            ids, mask, _ = score.padded([rows[i] for i in batch], pad, 0, model.device)
            with torch.inference_mode():
                output = generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids) if mask is None else mask,
                    generation_config=greedy,
                )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text.strip()
            bar.update(len(batch))
    return answers


def metrics_of(
    name: str,
    predictions: Sequence[str],
    truth: Sequence[str],
    labels: Sequence[str],
    *,
    draws: int,
    seed: int,
    internal: bool = False,
) -> tuple[Metric, ...]:
    """`accuracy.NAME`, `macro_f1.NAME`, and `recall.NAME.LABEL` for every label.

    Args:
        name: What was measured, e.g. `student`.
        predictions: Predicted labels.
        truth: True labels.
        labels: All labels of the task.
        draws: Bootstrap draws for the interval of F1.
        seed: Seeds them.
        internal: Whether the figures were computed from unprotected private records.
    """
    if not truth:
        names = [f"accuracy.{name}", f"macro_f1.{name}", *(f"recall.{name}.{label}" for label in labels)]
        return tuple(missing_metric(each, internal=internal) for each in names)
    found = _module("classification").compute(
        predictions=list(predictions), references=list(truth), labels=list(labels)
    )
    low, high = _bootstrap_macro_f1(predictions, truth, labels, draws, seed)
    n = len(truth)
    metrics = [
        share_metric(f"accuracy.{name}", round(found["accuracy"] * n), n, internal=internal),
        Metric(
            name=f"macro_f1.{name}",
            value=found["macro_f1"],
            ci_low=low,
            ci_high=high,
            n=n,
            interval=f"95% bootstrap ({draws})",
            internal=internal,
        ),
    ]
    for label in labels:
        right = [a == label for a, b in zip(predictions, truth, strict=True) if b == label]
        metrics.append(share_metric(f"recall.{name}.{label}", sum(right), len(right), internal=internal))
    return tuple(metrics)


def generation_metrics(
    name: str, answers: Sequence[str], truth: Sequence[str], *, draws: int, seed: int, internal: bool = False
) -> tuple[Metric, ...]:
    """`exact_match.NAME`, `rouge_l.NAME` and `chrf.NAME`, in [0, 1]; arguments as for `metrics_of`."""
    items: dict[str, list[float]] = {"exact_match": [], "rouge_l": [], "chrf": []}
    if truth:
        items = _module("generation").compute(predictions=list(answers), references=list(truth), per_item=True)
    share = share_metric(f"exact_match.{name}", int(sum(items["exact_match"])), len(truth), internal=internal)
    means = (
        mean_metric(f"{kind}.{name}", items[kind], n_resamples=draws, seed=seed, internal=internal)
        for kind in ("rouge_l", "chrf")
    )
    return (share, *means)


def forgetting(before: np.ndarray, after: np.ndarray, *, draws: int, seed: int) -> tuple[Metric, ...]:
    """What training did to the loss on neutral public text.

    Args:
        before: (n,) mean loss per token of each text under the base model, in nats (`score.sequence_nll`).
        after: The same under the student.
        draws: Bootstrap draws over the texts.
        seed: Seeds them.

    Returns:
        `forgetting.loss_before`, `forgetting.loss_after` and `forgetting.increase`, the mean of the differences
        text by text.
    """
    measured = {"loss_before": before, "loss_after": after, "increase": after - before}
    return tuple(
        mean_metric(f"forgetting.{kind}", values.tolist(), n_resamples=draws, seed=seed)
        for kind, values in measured.items()
    )


@cache
def _module(name: str) -> Any:
    import evaluate

    # On disk it would write answers and references, which may be private, into a cache outside the vault.
    return evaluate.load(str(METRICS / f"{name}.py"), keep_in_memory=True)


def _bootstrap_macro_f1(
    predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str], draws: int, seed: int
) -> tuple[float, float]:
    """Drawing n items anew is drawing the n counts of the confusion table from a multinomial."""
    size = len(labels)
    place = {label: index for index, label in enumerate(labels)}
    table = np.zeros((size, size))
    for predicted, true in zip(predictions, truth, strict=True):
        table[place[true], place[predicted]] += 1
    drawn = np.random.default_rng(seed).multinomial(len(truth), table.ravel() / len(truth), size=draws)
    counts = drawn.reshape(draws, size, size)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    present = counts.sum(1) + counts.sum(2)
    f1 = np.divide(2.0 * hits, present, out=np.zeros(hits.shape), where=present > 0)
    low, high = np.percentile(f1.mean(1), [2.5, 97.5])
    return float(low), float(high)
