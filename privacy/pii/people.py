"""Names of persons: by what stands around them here, by the lists of `names`, and by the model of `model`."""

from __future__ import annotations

from tutelage.privacy.pii.names import listed_names, small_names
from tutelage.privacy.pii.pattern import CAPITAL, NAMES, PARTICLES, Detector, Finder, Found, Pattern
from tutelage.privacy.pii.words import fold, known, tokens

_NO_NAME = (
    r"(?!(?i:again|all|both|colleagues?|customers?|dr|editors?|everybody|everyone|folks|for|friends?|guys|home\s?owners?|i|"
    r"i['’]m|investors?|ladies|list|madam|members?|mr|mrs|ms|my|or|please|sirs?|so|students?|subscribers?|team|there|this|"
    r"to|users?|valued|very|we|world|you)\b)"
)
_TITLE = r"(?:Mr|MR|Mrs|MRS|Ms|MS|Mx|Miss|MISS|Dr|DR|Prof|PROF|Professor|Sir|SIR|Lady|Lord|Rev|Herr|Frau|Mme|Monsieur)"


def _nameable(found: Found) -> bool:
    """Some word of it is a given name or in no dictionary: many a thing comes after "Dear"."""
    return any(token.is_in(known().given_or_word) or token.unknown for token in tokens(found[0]) if token.long)


def _titled(found: Found) -> bool:
    """Goes on with no function word, as in "Mr. As I said"."""
    return all(token.folded not in known().functions for token in tokens(found[0])[:1])


def _small_given(found: Found) -> bool:
    return fold(found[0]) in known().given


def _only_names(found: Found) -> bool:
    """Every word of it is listed as a name or in no dictionary."""
    long = [token for token in tokens(found[0]) if token.long]
    return bool(long) and all(token.is_in(known().people) or token.unknown for token in long)


def _with_given(found: Found) -> bool:
    """Only names, or a sure given name with any other word but a function word: "Stubbs, Noah"."""
    folded = [token for token in tokens(found[0]) if token.long]
    return _only_names(found) or (
        any(token.is_in(known().given) for token in folded)
        and not any(token.folded in known().functions for token in folded)
    )


PERSON: tuple[Detector, ...] = (
    # after a title
    Pattern(rf"\b{_TITLE}\.?[ \t]+\K(?:{_TITLE}\.?[ \t]+)?{_NO_NAME}(?:{PARTICLES})?{NAMES}", 0.7, _titled),
    # greetings
    Pattern(r"(?i:\b(?:dear|hi|hello|hey|attn:?|good (?:morning|afternoon|evening|day))),?[ \t]+"
            rf"\K{_NO_NAME}{NAMES}", 0.6, _nameable),
    Pattern(rf"(?i:\b(?:thanks|thank you|thx|welcome|sorry))[ \t]+\K{_NO_NAME}{NAMES}(?=[ \t]*(?:[,!.;:)]|$))",
            0.6, _only_names),
    Pattern(r"(?i:\b(?:dear|hi|hello|hey)),?[ \t]+\K\p{Ll}[\p{Ll}\p{M}'’-]+(?=[ \t]*(?:[,!:]|$))",
            0.6, _small_given),
    # signatures: whatever stands alone on the line, or a name on the same line
    Pattern(r"(?i:\b(?:regards|cheers|sincerely|wishes|love|all the best))[,.!-]{0,2}[\s>]{1,6}"
            rf"\K{_NO_NAME}{NAMES}(?=[\s.,]*$)", 0.6),
    Pattern(r"(?i:\b(?:thanks|thank you|thx|best|yours|truly|faithfully))\s?(?:[,.!-]{1,2}|\n)[\s>]{0,6}"
            rf"\K{_NO_NAME}{NAMES}(?=[\s.,]*$)", 0.6),
    Pattern(r"(?i:\b(?:regards|cheers|sincerely|wishes|faithfully|all the best))[,.!-]{0,2}[\s>]{1,6}"
            rf"\K{_NO_NAME}{NAMES}", 0.6, _only_names),
    Pattern(rf"(?:^|(?<=\s))[> \t]*--?[ \t]*\n?[> \t]*\K{NAMES}(?=[ \t]*$)", 0.6, _nameable),
    # headers: From: joe bloggs <...>, From: ... (Joe Bloggs), Joe Bloggs wrote:
    Pattern(r"(?:^|(?<=\s))[>\s]*(?i:from|to|cc|bcc|reply-to|sender)[ \t]*:[ \t]*\"?"
            rf"\K{_NO_NAME}\p{{L}}[\p{{L}}\p{{M}}.'’-]*(?:[ \t]+[\p{{L}}\p{{M}}.'’-]+){{0,3}}"
            r"(?=\"?[ \t]*(?:[<(\[]|$))", 0.6),
    Pattern(r"(?:^|(?<=\s))(?i:from|to|cc|reply-to|sender)[ \t]*:[^\n(]{3,80}"
            r"\(\K[\p{L}\p{M} .'’-]{2,60}(?=\))", 0.6),
    Pattern(rf"\b{NAMES}(?=[ \t](?:<[^\n>]{{0,80}}>+[ \t])?(?:wrote|writes):)", 0.6),
    # forms and tables: Name: Joe Bloggs, | Bloggs, Joe |, 1. BLOGGS Joe
    Pattern(r"(?i:\b(?:assignee|attendees?|attention|author|by|client|contact|customer|employee|manager|name|owner|"
            r"participants?|patient|present|signed))[ \t]*[:=|][ \t]*"
            rf"\K{_NO_NAME}{NAMES}(?:,[ \t]+{CAPITAL})?", 0.6, _nameable),
    Pattern(r"(?:^|[|:;,][ \t]|\d\.[ \t])[> \t]*"
            rf"\K{CAPITAL},?(?:[ \t]+{CAPITAL}){{1,3}}(?=[ \t]*(?:$|[|;(]|\d\.))", 0.6, _with_given),
    Pattern(rf"(?i:\b(?:my name is|this is|i am|i['’]m|name['’]s))[ \t]+\K{_NO_NAME}{NAMES}", 0.6, _only_names),
    Finder(listed_names, 0.6),
    Finder(small_names, 0.6),
)  # fmt: skip
