"""All detectors together: a text goes in and comes out with placeholders.

The detectors are called one by one, not through an engine, because an engine leaves out with no more than a line in a
log what has no detector or takes too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tutelage.configs.errors import UserError
from tutelage.privacy.pii import model, numbers, online, people, streets
from tutelage.privacy.pii.pattern import Detector
from tutelage.privacy.pii.spans import Scrubbed, Span, check_entities, moved_back, replace, resolve

DETECTORS: dict[str, tuple[Detector, ...]] = {
    "EMAIL_ADDRESS": online.EMAIL_ADDRESS,
    "PHONE_NUMBER": numbers.PHONE_NUMBER,
    "URL": online.URL,
    "CREDIT_CARD": numbers.CREDIT_CARD,
    "IBAN_CODE": numbers.IBAN_CODE,
    "US_SSN": numbers.US_SSN,
    "IP_ADDRESS": online.IP_ADDRESS,
    "PERSON": people.PERSON,  # and the model, which takes many texts at a time
    "STREET_ADDRESS": streets.STREET_ADDRESS,
}


class Scrubber:
    """Finds and replaces the asked-for entities. Scrubbing a scrubbed text changes nothing.

    Args:
        entities: Which of `ENTITIES` to replace.
        score: Detections below this confidence (0 to 1) are ignored.

    Raises:
        UserError: an entity that no detector here knows, or none is ever as sure of as `score`.
        RuntimeError: a known entity has no detector.
    """

    def __init__(self, entities: Sequence[str], score: float) -> None:
        check_entities(entities)
        for entity in entities:
            if (best := _best_score(entity)) < score:
                raise UserError(
                    f"no detector of {entity} is ever as sure as {score:g}, the surest is {best:g}",
                    key="screen.pii_score",
                    remedy="lower it, or take that entity out of screen.entities",
                )
        self._entities, self._score = tuple(entities), score
        self._detectors = [
            (entity, detector)
            for entity in dict.fromkeys(entities)
            for detector in DETECTORS[entity]
            if detector.score >= score
        ]

    def scrub(self, text: str) -> Scrubbed:
        """Scrub one text."""
        return self.scrub_many([text])[0]

    def scrub_many(self, texts: Iterable[str]) -> list[Scrubbed]:
        """Scrub texts together, which is faster than one by one.

        Raises:
            PrivacyError: a pattern did not finish with a text, which may hold what the pattern is for.
        """
        originals = list(texts)
        done: list[list[Span]] = [[] for _ in originals]
        pending = list(range(len(originals))) if self._entities else []
        # A replaced name changes what the detectors see in the rest, so a text is scrubbed until nothing more is found.
        # Every pass that finds something leaves fewer characters outside placeholders: this ends. The model is slow,
        # so it looks at a text only once the others are done with it.
        while pending:
            for i in pending:
                while new := self._detected(replace(originals[i], done[i])):
                    done[i] = sorted(done[i] + moved_back(new, done[i]))
            found = self._modelled([replace(originals[i], done[i]) for i in pending])
            for i, new in zip(pending, found, strict=True):
                done[i] = sorted(done[i] + moved_back(new, done[i]))
            pending = [i for i, new in zip(pending, found, strict=True) if new]
        return [
            Scrubbed(replace(text, spans), dict(Counter(span.entity for span in spans)), tuple(spans))
            for text, spans in zip(originals, done, strict=True)
        ]

    def _detected(self, text: str) -> list[Span]:
        return resolve(
            text,
            (
                Span(start, end, entity, detector.score)
                for entity, detector in self._detectors
                for start, end in detector.find(text)
            ),
        )

    def _modelled(self, texts: Sequence[str]) -> list[list[Span]]:
        if "PERSON" not in self._entities or self._score > model.CONFIDENCE:
            return [[] for _ in texts]
        return [
            resolve(text, (Span(start, end, "PERSON", model.CONFIDENCE) for start, end in places))
            for text, places in zip(texts, model.modelled_names(texts), strict=True)
        ]


def _best_score(entity: str) -> float:
    """Of the detectors of an entity.

    Raises:
        RuntimeError: it has none.
    """
    if not DETECTORS[entity]:
        raise RuntimeError(f"{entity} is a known entity, but has no detector")
    return max([detector.score for detector in DETECTORS[entity]] + [model.CONFIDENCE] * (entity == "PERSON"))
