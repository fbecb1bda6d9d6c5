"""Read a recipe, or what a silo agrees to: YAML, `${ENV}` for secrets, unknown keys refused with a suggestion."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tutelage.configs.errors import UserError
from tutelage.configs.schema import FileData, Recipe, SiloConfig, TeachConfig

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` pairs, the value in YAML, applied after reading.

    Raises:
        UserError: naming the file, the line or key, and the remedy.
    """
    data = _mapping(path, "recipe", "`tutelage init` writes one to start from")
    for override in overrides:
        _override(data, override)
    return parse_recipe(_expanded(data, path), path)


def load_silo(home: Path) -> SiloConfig:
    """Read and check what a silo agrees to: `silo.yaml` in its folder.

    Raises:
        UserError: naming the file, the line or key, and the remedy.
    """
    path = home / "silo.yaml"
    data = _mapping(path, "silo's folder", "`tutelage silo init` makes one")
    try:
        config = SiloConfig.model_validate(_expanded(data, path))
    except ValidationError as error:
        raise _explain(error, path, SiloConfig) from None
    source = config.records
    if isinstance(source, FileData) and not source.path.is_absolute():
        source = source.model_copy(update={"path": (home / source.path).resolve()})
        config = config.model_copy(update={"records": source})
    return config.model_copy(update={"exchange": _from(home, config.exchange)})


def parse_recipe(data: dict[str, Any], path: Path | None = None) -> Recipe:
    """Check a recipe that is already a mapping."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path, Recipe) from None
    source = recipe.data.records
    if source.source == "files" and "\0" in str(source.path):
        raise UserError("a path cannot hold a NUL character", file=path, key="data.records.path", remedy="remove it")
    return recipe if path is None else _beside(recipe, path.parent)


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its relative paths taken from its own folder, so that the folder can be moved as a whole."""
    source = recipe.data.records
    if source.source == "files" and not source.path.is_absolute():
        source = source.model_copy(update={"path": (folder / source.path).resolve()})
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"records": source})})

    formal = recipe.formal
    if formal and formal.ledgers and not formal.ledgers.is_absolute():
        formal = formal.model_copy(update={"ledgers": (folder / formal.ledgers).resolve()})
        recipe = recipe.model_copy(update={"privacy": formal})

    if recipe.federation:
        here = recipe.federation.model_copy(update={"exchange": _from(folder, recipe.federation.exchange)})
        recipe = recipe.model_copy(update={"federation": here})

    def model(name: str) -> str:
        return str((folder / name).resolve()) if (folder / name).is_dir() else name

    return recipe.model_copy(
        update={
            "teach": recipe.teach.model_copy(
                update={
                    "model": model(recipe.teach.model),
                    "adapter": recipe.teach.adapter and model(recipe.teach.adapter),
                    **_own(recipe.teach, model),
                }
            ),
            "student": recipe.student.model_copy(update={"base": model(recipe.student.base)}),
        }
    )


def _own(teach: TeachConfig, model: Callable[[str], str]) -> dict[str, Any]:
    """The models of several teachers, where they lie."""
    teachers = tuple(one.model_copy(update={"model": model(one.model)}) for one in teach.teachers)
    scorer, route = getattr(teach.route, "scorer_model", None), teach.route
    if route and scorer:
        route = route.model_copy(update={"scorer_model": model(scorer)})
    return {"teachers": teachers, "route": route}


def _from(folder: Path, address: str) -> str:
    """An address, if it is a relative path, from a folder."""
    return address if "://" in address else str((folder / address).resolve())


def _mapping(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """A YAML file's mapping; `remedy`: where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no such {what}", file=path, remedy=remedy) from None
    except IsADirectoryError:
        raise UserError(f"this is a folder, not a {what}", file=path, remedy="name a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8", file=path, remedy="save it as UTF-8") from None
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", file=path, remedy="check the path and its permissions"
        ) from None
    data = _yaml(text, path)
    if not isinstance(data, dict):
        raise UserError(f"a {what} is a mapping of keys to values", file=path, remedy="see configs/demo.yaml")
    return data


def _expanded(data: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        expanded: dict[str, Any] = _expand(data, path)
    except RecursionError:
        raise UserError("nested without end", file=path, remedy="remove the YAML alias that contains itself") from None
    return expanded


class _UniqueKeys(yaml.SafeLoader):
    """YAML as it is safe to load, where a key that is given twice is an error: plain YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str, path: Path | None = None, key: str | None = None) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"not valid YAML: {getattr(error, 'problem', None) or 'syntax error'}",
            file=path,
            row=mark.line + 1 if mark and not key else None,
            key=key,
            remedy="mend that line" if not key else "put the value into quotes",
        ) from None
    except Exception:  # what PyYAML makes of an impossible date, a malformed number, endless nesting
        raise UserError(
            "not valid YAML: it holds a value that cannot be read", file=path, key=key, remedy="quote odd values"
        ) from None


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise UserError("an override is KEY=VALUE", key=override, remedy="e.g. --set teach.temperature=0.8")
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(
                "this key holds a value, not a section",
                key=".".join(parents[:depth]),
                remedy="check the dotted path",
            )
        data = child
    data[last] = _yaml(value, key=key)


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


def _explain(error: ValidationError, path: Path | None, model: type[BaseModel]) -> UserError:
    """Turn pydantic's first finding into one sentence, and count the others."""
    findings = error.errors(include_url=False, include_input=False)
    first = findings[0]
    where = _location(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    remedy = "see configs/demo.yaml, or `tutelage validate --schema`"
    if first["type"] == "extra_forbidden":
        message = "unknown key"
        close = _closest(where, model)
        if close:
            remedy = f"did you mean {close!r}?"
    elif first["type"] == "missing":
        message = "this key is missing"
    elif first["type"] == "union_tag_not_found":
        message = f"it needs the key {first['ctx']['discriminator']}, which says what the other keys mean"
    if len(findings) > 1:
        message += f" (and {len(findings) - 1} more)"
    return UserError(message, file=path, key=".".join(where) if where else None, remedy=remedy)


def _location(location: Sequence[int | str]) -> list[str]:
    """Where in the recipe an error lies, without what pydantic adds and the user never wrote."""
    parts = [str(part) for part in location]
    teachers = ["teach", "teachers", *parts[2:3], "engine"]
    for union in (
        ["task"], ["privacy"], ["data", "records"], ["records"],
        ["teach", "engine"], ["engine"], ["teach", "route"], teachers,
    ):  # fmt: skip
        if parts[: len(union)] == union:
            del parts[len(union) : len(union) + 1]  # the tag that chose the union's member
    if parts[:2] == ["student", "target_modules"]:
        return parts[:2]
    return parts[:-1] if parts[-1:] == ["[key]"] else parts


def _closest(where: list[str], model: type[BaseModel]) -> str | None:
    """The dotted path of the key that was probably meant: a sibling, this one in another section, or any other."""
    *parents, name = where
    section = ".".join(part for part in parents if not part.isdigit())
    known = _known_keys(model)
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    for pool, likeness in ((siblings, 0.8), (known, 1.0), (siblings, 0.6), (known, 0.6)):
        names = [key.rpartition(".")[2] for key in pool]
        close = difflib.get_close_matches(name, names, n=1, cutoff=likeness)
        if close:
            return pool[names.index(close[0])]
    return None


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted paths of all fields below a model."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        pending: list[Any] = [field.annotation]
        while pending:
            candidate = pending.pop()
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys += _known_keys(candidate, f"{prefix}{name}.")
            else:
                pending.extend(get_args(candidate))
    return keys
