"""Names of persons by the model, whose doubtful answers lists and a dictionary settle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tutelage.privacy.pii.names import Candidates
from tutelage.privacy.pii.pattern import Found, Place, compiled
from tutelage.privacy.pii.pipeline import pipeline
from tutelage.privacy.pii.spans import PLACEHOLDER
from tutelage.privacy.pii.words import fold, is_english, known

if TYPE_CHECKING:
    from spacy.tokens import Doc
    from spacy.tokens import Span as Entity

CONFIDENCE = 0.85
"""Of a name that the model found: it gives none itself."""
_BATCH_TEXTS = 256
# Labels of the model for what it takes for no person; it often takes a foreign name for a company or a town.
_OTHER_LABELS = frozenset(("ORG", "GPE", "FAC", "LOC", "NORP", "PRODUCT", "WORK_OF_ART", "EVENT"))
_ENDLESS = r"\S{200,}+"
_SHOUT = r"\p{Lu}[\p{Lu}\p{M}'’-]"
_SHOUTED_WORD = rf"(?<![<\p{{L}}\p{{N}}_]){_SHOUT}++(?![\p{{L}}\p{{N}}_>])"
_SHOUTED_PAIR = (
    rf"(?<![<\p{{L}}\p{{N}}_]){_SHOUT}{{2,}}+(?=[ ]{_SHOUT}{{2,}}+(?![\p{{L}}\p{{N}}_>]))"
    rf"|(?<=[\p{{Lu}}\p{{M}}]{{3}}[ ]){_SHOUT}{{2,}}+(?![\p{{L}}\p{{N}}_>])"
)


def modelled_names(texts: Sequence[str]) -> list[list[Place]]:
    """The names in each text."""
    docs = pipeline().pipe(map(_in_mixed_case, texts), batch_size=_BATCH_TEXTS)
    return [list(_judged(text, doc)) for text, doc in zip(texts, docs, strict=True)]


def _judged(text: str, doc: Doc) -> Iterator[Place]:
    """What the model takes for persons, less what the dictionary knows better; and names that it takes for others."""
    names = Candidates(text)
    for entity in doc.ents:
        start, end = entity.start_char, entity.end_char
        inside = [i for i, token in enumerate(names.tokens) if start <= token.start and token.end <= end]
        if entity.label_ == "PERSON" and not inside:
            if any(fold(word) in known().given for word in entity.text.split()):
                yield start, end  # written small
        elif _is_person(entity, names, inside):
            while len(inside) > 1 and names.tokens[inside[-1]].folded in known().functions:
                inside.pop()
            if len(inside) > 1 or not names.verb(inside[0]):
                for first, last in names.together(inside):
                    yield names.span(*names.widened(first, last))


def _is_person(entity: Entity, names: Candidates, inside: Sequence[int]) -> bool:
    """Whether what the model found is a person, for all that lists and dictionary know of its capitalised words."""
    long = [token for token in map(names.tokens.__getitem__, inside) if token.long]
    given = [token.is_in(known().given_or_word) for token in long]
    unknown = [token.unknown for token in long]
    listed = [token.is_in(known().people) for token in long]
    if entity.label_ == "PERSON":
        # one word in capitals that nobody knows is an abbreviation
        return any(given) or listed == [True] or (any(unknown) and not (len(long) == 1 and long[0].shouted))
    foreign = (
        1 < len(long) < 5 and all(a or b for a, b in zip(listed, unknown, strict=True)) and (given[0] or all(unknown))
    )
    return entity.label_ in _OTHER_LABELS and foreign and not any(map(names.place, inside))


def _in_mixed_case(text: str) -> str:
    """The text as if nobody had shouted: names in capitals, or all of it where most is; every letter in its place.

    The model learnt from newspapers and hardly knows a name in capitals.
    """
    outside = PLACEHOLDER.sub("", text)
    letters = sum(map(str.isalpha, outside))
    shouted = letters > 12 and sum(map(str.isupper, outside)) > 0.7 * letters

    def lowered(found: Found) -> str:
        word, english = found[0], is_english(fold(found[0]))
        if english and not shouted:
            return word
        plain = word.lower() if english else word[0] + word[1:].lower()
        return plain if len(plain) == len(word) else word

    text = compiled(_SHOUTED_WORD if shouted else _SHOUTED_PAIR).sub(lowered, text)
    # spaCy's tokenizer takes the square of the length of a word that is made of punctuation
    return compiled(_ENDLESS).sub(lambda run: compiled(r"[^\p{L}\p{N}]").sub(" ", run[0]), text)
