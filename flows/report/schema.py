"""The JSON schema of what `tutelage report --json` prints, published as docs/report.schema.json.

Write it anew with `tutelage report --schema > docs/report.schema.json`; a test holds the two equal.
"""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any

from tutelage.configs import records
from tutelage.configs.records import RoundReport

VERSION = 1
"""Rises with every change that breaks a reader."""

_NUMBER: dict[str, Any] = {"type": ["number", "null"]}


def report_schema() -> dict[str, Any]:
    """The schema, in draft 2020-12. A number that could not be measured is null."""
    made = RoundReport.model_json_schema(mode="serialization", ref_template="#/$defs/{model}")
    definitions = made.pop("$defs")
    definitions["RoundReport"] = made
    for name, fields in _field_docs().items():
        for field, text in fields.items():
            if field in definitions.get(name, {}).get("properties", {}):
                definitions[name]["properties"][field].setdefault("description", text)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Report of a tutelage run",
        "description": "What `tutelage report RUN --json` prints. A number that could not be measured is null.",
        "type": "object",
        "additionalProperties": False,
        "required": ["reports", "schema", "timings_s"],
        "properties": {
            "schema": {"const": VERSION, "description": "Version of this schema."},
            "reports": {
                "type": "array",
                "items": {"$ref": "#/$defs/RoundReport"},
                "description": "One per round, by round.",
            },
            "timings_s": {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": 0},
                "description": "Stage -> seconds; empty in versions to pass on.",
            },
        },
        "$defs": _nullable(definitions),
    }


def schema_text() -> str:
    """The schema as the published file has it."""
    return json.dumps(report_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _nullable(value: Any) -> Any:
    """Every number may be null, since JSON has no NaN and no infinity; titles that repeat a name are left out."""
    if isinstance(value, list):
        return [_nullable(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {key: _nullable(one) for key, one in value.items() if not (key == "title" and isinstance(one, str))}
    if {"type": "null"} in made.get("anyOf", []) and _NUMBER in made["anyOf"]:
        del made["anyOf"]
        made |= _NUMBER
    return {**made, **_NUMBER} if made.get("type") == "number" else made


def _field_docs() -> dict[str, dict[str, str]]:
    """Class -> field -> the string that stands below the field in configs/records.py."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(records)).body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
                    found.setdefault(node.name, {})[field.target.id] = inspect.cleandoc(below.value.value)  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
