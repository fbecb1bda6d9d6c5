"""What answers must look like: a JSON schema, a choice or a regular expression, and whether a text does.

All three are grammars of llguidance, which the engines constrain by too, so what was written under one fits it.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, model_validator

from tutelage.configs.records import Frozen


class Structure(Frozen):
    """What an answer must be: exactly one of the three."""

    json_schema: dict[str, Any] | None = None
    """JSON by this schema (draft 2020-12, as far as llguidance knows it), such as the arguments of a tool. Properties
    stand in the schema's order, and there is no white space between them."""
    choice: tuple[str, ...] | None = Field(None, min_length=2)
    """One of these, word for word."""
    regex: str | None = Field(None, min_length=1, max_length=10_000)
    """All of it matches this, in Rust's dialect: no look-around, no back-references."""

    @model_validator(mode="after")
    def _can_be_met(self) -> Structure:
        from llguidance import LLMatcher

        if sum(one is not None for one in (self.json_schema, self.choice, self.regex)) != 1:
            raise ValueError("it takes exactly one of json_schema, choice and regex")
        if any(not one or one != one.strip() for one in self.choice or ()):
            raise ValueError("choice holds an answer that is empty, or has white space around it")
        if len(set(self.choice or ())) < len(self.choice or ()):
            raise ValueError("choice holds an answer twice")
        problem = LLMatcher.validate_grammar(self.grammar)
        if problem:
            kind = "regex" if self.regex is not None else "json_schema"
            raise ValueError(f"{kind} cannot be constrained to: {' '.join(problem.split())[:300]}")
        return self

    @property
    def grammar(self) -> str:
        """As llguidance takes it."""
        import llguidance

        if self.json_schema is not None:
            found = llguidance.LLMatcher.grammar_from_json_schema(
                self.json_schema, defaults={"whitespace_flexible": False}
            )
        elif self.regex is not None:
            found = llguidance.LLMatcher.grammar_from_regex(self.regex)
        else:
            found = llguidance.grammar_from("choice", json.dumps(self.choice))
        return str(found)

    def read(self, text: str) -> str | None:
        """An answer as lessons have it, JSON without white space; None where it doesn't fit."""
        import llguidance

        if self.json_schema is not None:
            try:
                text = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
                text = text.replace("\x7f", "\\u007f")  # which llguidance, unlike json, wants escaped
            except (ValueError, RecursionError):
                return None
        # it would quote the text in a warning, which may be private
        matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), self.grammar, log_level=0)
        given = list(text.encode(errors="replace"))
        fits = matcher.validate_tokens(given) == len(given) and matcher.consume_tokens(given) and matcher.is_accepting()
        return text if fits else None
