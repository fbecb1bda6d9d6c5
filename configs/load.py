"""Read a recipe: YAML, `${ENV}` for secrets, unknown keys refused with a suggestion."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tutelage.configs.errors import UserError
from tutelage.configs.schema import Recipe

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` pairs, the value in YAML, applied after reading.

    Raises:
        UserError: naming the file, the line or key, and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            "there is no such recipe", file=path, remedy="`tutelage init` writes one to start from"
        ) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a recipe", file=path, remedy="name a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8", file=path, remedy="save it as UTF-8") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"not valid YAML: {getattr(error, 'problem', 'syntax error')}",
            file=path,
            row=mark.line + 1 if mark else None,
            remedy="mend that line",
        ) from None
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of keys to values", file=path, remedy="see configs/demo.yaml")
    for override in overrides:
        _override(data, override)
    return parse_recipe(_expand(data, path), path)


def parse_recipe(data: dict[str, Any], path: Path | None = None) -> Recipe:
    """Check a recipe that is already a mapping."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path) from None
    source = recipe.data.records
    if source.source == "files" and path is not None and not source.path.is_absolute():
        # A relative data path is relative to the recipe, so a recipe folder can be moved as a whole.
        source = source.model_copy(update={"path": (path.parent / source.path).resolve()})
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"records": source})})
    return recipe


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise UserError("an override is KEY=VALUE", key=override, remedy="e.g. --set teach.temperature=0.8")
    *parents, last = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError("this key holds a value, not a section", key=parent, remedy="check the dotted path")
        data = child
    data[last] = yaml.safe_load(value)


def _expand(value: Any, path: Path) -> Any:
    """Replace `${NAME}` by the environment variable."""
    if isinstance(value, dict):
        return {key: _expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UserError(f"the environment variable {name} is not set", file=path, remedy=f"export {name}=...")
        return os.environ[name]

    return _VARIABLE.sub(lookup, value)


def _explain(error: ValidationError, path: Path | None) -> UserError:
    """Turn pydantic's first finding into one sentence, and count the others."""
    findings = error.errors(include_url=False, include_input=False)
    first = findings[0]
    # pydantic puts a union's tag into the location; the user never wrote it
    where = [
        str(part) for part in first["loc"] if part not in ("classification", "generation", "spam_assassin", "files")
    ]
    message = first["msg"].removeprefix("Value error, ")
    remedy = "see configs/demo.yaml, or `tutelage validate --schema`"
    if first["type"] == "extra_forbidden":
        message = "unknown key"
        close = difflib.get_close_matches(where[-1], _known_keys(Recipe), n=1)
        if close:
            remedy = f"did you mean {close[0]!r}?"
    elif first["type"] == "missing":
        message = "this key is missing"
    if len(findings) > 1:
        message += f" (and {len(findings) - 1} more)"
    return UserError(message, file=path, key=".".join(where) or None, remedy=remedy)


def _known_keys(model: type[BaseModel]) -> set[str]:
    """All field names below a model, for suggestions."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(name)
        pending: list[Any] = [field.annotation]
        while pending:
            candidate = pending.pop()
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys |= _known_keys(candidate)
            else:
                pending.extend(get_args(candidate))
    return keys
