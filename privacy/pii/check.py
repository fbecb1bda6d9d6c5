"""The scanner's own recall and precision, on generated text in which every piece of personal data is known.

`planted.planted` puts values of one entity, in many forms, into sentences and mails; `planted.clean` writes texts that
have none and mostly look as if they had; `check` lets a `Scrubber` loose on both and counts. All is invented and
repeatable by its seed, so the figures are public.

The detectors were written against one half of the carriers and of the origins of names (`development`) and without a
look at the other (`held_out`, the default), which also has forms of its own.

What it doesn't know: forms that nobody listed here, names in other scripts than Latin, and how often real text looks
like this. The addresses of houses come from the same lists in both halves. The figures compare scanners; they bound
nothing.

Run:
    python -m tutelage.privacy.pii.check [--n 200] [--seed 0] [--split held_out] [--misses] [--entities PERSON ...]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tutelage.configs.records import Metric
from tutelage.privacy.pii.forms import Split
from tutelage.privacy.pii.planted import FORMS, Known, Planted, clean, planted
from tutelage.privacy.pii.scrubber import Scrubber
from tutelage.privacy.pii.spans import ENTITIES, Scrubbed, Span, check_entities
from tutelage.privacy.stats import share_metric


def check(
    scrubber: Scrubber, entities: Sequence[str], n: int = 200, seed: int = 0, split: Split = "held_out"
) -> tuple[Metric, ...]:
    """Measure a scrubber on planted and on clean text.

    `pii.recall.ENTITY` is the share of planted values of which no letter and no digit is left: a value replaced but for
    a part is a miss. `pii.recall.ENTITY.STRATUM` is the same for forms that are no part of it, such as addresses
    spelled to fool machines, and `pii.recall.PERSON.bare` for names in the midst of a sentence, which are a part of it.
    `pii.precision.ENTITY` is the share of replaced spans of the entity, over all texts, that overlap personal data
    of whatever entity; missing where nothing was replaced. `pii.clean_changed_share` is the share of clean texts in
    which anything was replaced.

    Args:
        scrubber: What to measure.
        entities: Which of `ENTITIES` to plant; those that the scrubber should replace.
        n: How many texts per entity, and of clean ones. 200 take some 10 seconds on one core.
        seed: The same seed gives the same texts.
        split: `held_out`, or `development` for the half that the patterns were written against.

    Returns:
        Metrics with exact 95% intervals. All text is generated, so none is internal.

    Raises:
        UserError: an entity nobody knows.
    """
    check_entities(entities)
    cases = {entity: planted(entity, n, seed, split) for entity in entities}
    plain = clean(n, seed, split)
    texts = [one.text for some in cases.values() for one in some]
    results = scrubber.scrub_many([*texts, *plain])
    found = dict(zip(cases, _in_parts(results, [len(some) for some in cases.values()]), strict=True))

    recall: defaultdict[str, list[bool]] = defaultdict(list)
    precision: defaultdict[str, list[bool]] = defaultdict(list, {entity: [] for entity in entities})
    for entity, some in cases.items():
        forms = {form.name: form for form in FORMS[entity]}
        for one, result in zip(some, found[entity], strict=True):
            form, hit = forms[one.value.form], covered(one, result)
            recall[f"{entity}.{form.stratum}" if form.stratum else entity].append(hit)
            if form.carriers.startswith("bare") and not form.stratum:
                recall[f"{entity}.bare"].append(hit)
            alarms = _alarms(one.spans, result)
            for span in result.spans:
                precision[span.entity].append(span not in alarms)
    changed = results[len(texts) :]
    for result in changed:
        for span in result.spans:
            precision[span.entity].append(False)

    figures = {f"pii.recall.{key}": hits for key, hits in recall.items()}
    figures |= {f"pii.precision.{key}": hits for key, hits in precision.items()}
    figures["pii.clean_changed_share"] = [bool(one.spans) for one in changed]
    return tuple(share_metric(name, sum(hits), len(hits), exact=True) for name, hits in figures.items())


def covered(one: Planted, result: Scrubbed) -> bool:
    """Whether every letter and digit of the planted value was replaced, under whichever label."""
    left = set(range(one.value.start, one.value.end))
    for span in result.spans:
        left.difference_update(range(span.start, span.end))
    return not any(one.text[i].isalnum() for i in left)


def _alarms(known: Sequence[Known], result: Scrubbed) -> list[Span]:
    """The replaced spans that overlap no personal data."""
    return [span for span in result.spans if not any(span.start < one.end and one.start < span.end for one in known)]


def _in_parts(items: Sequence[Scrubbed], sizes: Iterable[int]) -> Iterator[Sequence[Scrubbed]]:
    start = 0
    for size in sizes:
        yield items[start : start + size]
        start += size


def main() -> None:
    """Print the figures, and with `--misses` what was missed or replaced in vain."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=200, help="texts per entity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["development", "held_out"], default="held_out")
    parser.add_argument("--misses", action="store_true", help="print every text with a miss or a false alarm")
    parser.add_argument("--entities", nargs="*", default=ENTITIES, metavar="ENTITY")
    args = parser.parse_args()
    scrubber = Scrubber(ENTITIES, 0.4)
    for metric in check(scrubber, args.entities, args.n, args.seed, args.split):
        print(f"{metric.name:40} {metric.value:6.3f}  [{metric.ci_low:.3f}, {metric.ci_high:.3f}]  n={metric.n}")
    if args.misses:
        for entity in args.entities:
            cases = planted(entity, args.n, args.seed, args.split)
            for one, result in zip(cases, scrubber.scrub_many(one.text for one in cases), strict=True):
                if not covered(one, result):
                    print(f"missed {entity} ({one.value.form}): {one.text!r} -> {result.text!r}")
                for span in _alarms(one.spans, result):
                    print(f"false alarm {span.entity}: {one.text[span.start : span.end]!r} in {one.text!r}")
        plain = clean(args.n, args.seed, args.split)
        for text, result in zip(plain, scrubber.scrub_many(plain), strict=True):
            if result.spans:
                print(f"changed: {text!r} -> {result.text!r}")


if __name__ == "__main__":
    main()
