"""A recipe from a shipped name or a file, with overrides; every fault is told at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fourstage.errors import InputError, nearest
from fourstage.recipe.data import DataSource, Section
from fourstage.recipe.rewards import names_none
from fourstage.recipe.schema import Recipe

Location = tuple[str | int, ...]
_SUFFIXES = (".yaml", ".yml", ".toml")


def shipped() -> list[str]:
    """Names of the recipes that come with the package, alphabetically."""
    folder = resources.files("fourstage.recipe") / "shipped"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def shipped_text(name: str) -> str:
    """The text of a shipped recipe, comments and all.

    Raises:
        InputError: there is none of that name.
    """
    names = shipped()
    if name not in names:
        raise InputError(
            f"no shipped recipe {name!r}{nearest(name, names)} (there are: {', '.join(names)})"
        )
    return (resources.files("fourstage.recipe") / "shipped" / f"{name}.yaml").read_text("utf-8")


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML or TOML file, with `key=value` overrides applied.

    A recipe that does not name itself is called after its file.

    Raises:
        InputError: with one line for each fault: unknown recipe, broken file, unknown key, wrong
            type or range, malformed override.
    """
    text, label, toml = _read(str(name_or_path))
    values, lines = _parse_toml(text, label) if toml else _parse_yaml(text, label)
    values.setdefault("name", Path(label).stem)
    origins: dict[Location, str] = {
        location: f"{label}:{line}: " for location, line in lines.items()
    }
    faults = apply_overrides(values, overrides, origins)
    return _validate(values, origins, faults)


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A recipe from plain nested values.

    Raises:
        InputError: with one line for each fault.
    """
    return _validate(values, {}, [])


def apply_overrides(
    values: dict[str, Any], overrides: Iterable[str], origins: dict[Location, str]
) -> list[str]:
    """Writes each `dotted.key=value` into `values`; returns the faults of malformed ones.

    `null`, `none` or nothing after the `=` takes a value back to derived. A comma makes a list
    where paths are expected.
    """
    faults = []
    for override in overrides:
        key, equals, value = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            faults.append(f"{override!r} is no override: write key=value, such as seed=1")
            continue
        fault = unknown_key(tuple(path))
        if fault:
            faults.append(fault)
            continue
        here = values
        for part in path[:-1]:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]
        if path == ["rl", "rewards"] and names_none(value.strip()):
            faults.append(
                f"{override} asks for no reward: leave it out for the reward model's score alone, "
                "or name rewards, such as rl.rewards=math"
            )
            continue
        here[path[-1]] = _typed(tuple(path), value.strip())
        origins[tuple(path)] = ""
    return faults


def _typed(path: Location, text: str) -> Any:
    if text.lower() in ("", "null", "none"):
        return None
    if path[0] == "data" and "," in text and not Path(text).exists():
        return [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
    return text


def fields_below(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """The dotted path of every field of a recipe."""
    for name, field in _by_alias(section).items():
        inner = _section_of(field)
        if inner is None:
            yield prefix + name
        else:
            yield from fields_below(inner, f"{prefix}{name}.")


def _by_alias(section: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section_of(field: FieldInfo) -> type[Section] | None:
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)


def _holds_names(field: FieldInfo) -> bool:
    """Whether its keys are a person's own names, as those of `data.map` are."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return any(get_origin(kind) is dict for kind in kinds)


def unknown_key(path: Location) -> str | None:
    """The fault of a key that no recipe has, with the nearest one; None when it exists."""
    section: type[BaseModel] | None = Recipe
    for depth, part in enumerate(path):
        fields = _by_alias(section) if section else {}
        if str(part) in fields:
            section = _section_of(fields[str(part)])
            if _holds_names(fields[str(part)]) and len(path) <= depth + 2:
                return None
            continue
        dotted = ".".join(map(str, path))
        return f"unknown key {dotted!r}{_near_key(path[: depth + 1], fields)}"
    if section is not None:
        dotted = ".".join(map(str, path))
        first = next(iter(_by_alias(section)))
        return f"{dotted!r} is a section: write one of its fields, such as {dotted}.{first}=..."
    return None


def _near_key(path: Location, siblings: Iterable[str]) -> str:
    """A sibling spelt like the wrong key, else the same field elsewhere, else the nearest path."""
    prefix = "".join(f"{part}." for part in path[:-1])
    word = str(path[-1])
    close = difflib.get_close_matches(word, list(siblings), n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    everywhere = list(fields_below())
    same = [field for field in everywhere if field.rsplit(".", 1)[-1] == word]
    return f"; did you mean {same[0]!r}?" if same else nearest(prefix + word, everywhere)


def _read(name: str) -> tuple[str, str, bool]:
    """Text of the recipe, what to call it in messages, and whether it is TOML."""
    path = Path(name)
    looks_like_file = path.suffix in _SUFFIXES or path.is_file() or "/" in name or "\\" in name
    if not looks_like_file:
        try:
            return shipped_text(name), f"{name}.yaml", False
        except InputError as error:
            near = nearest(name, [*shipped(), *_recipe_files(Path())])
            raise InputError(
                f"no recipe {name!r}: it is neither shipped ({', '.join(shipped())}) nor a file"
                f"{near}"
            ) from error
    try:
        return path.read_text("utf-8"), name, path.suffix == ".toml"
    except FileNotFoundError as error:
        candidates = [str(path.parent / file) for file in _recipe_files(path.parent)]
        near = nearest(name, [*candidates, *shipped()])
        raise InputError(f"no recipe file {name}{near}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: a recipe is a YAML or TOML file") from error
    except OSError as error:
        raise InputError(f"cannot read the recipe {name}: {error.strerror}") from error


def _recipe_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _parse_toml(text: str, label: str) -> tuple[dict[str, Any], dict[Location, int]]:
    try:
        return tomllib.loads(text), {}
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{label} is broken TOML: {error}") from error


def _parse_yaml(text: str, label: str) -> tuple[dict[str, Any], dict[Location, int]]:
    """The values, and the line of each key."""
    lines: dict[Location, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        faults = list(_walk(node, (), lines)) if node else []
        values = loader.construct_document(node) if node else {}
        loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{label}:{mark.line + 1}" if mark else label
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{where}: broken YAML: {problem}") from error
    if not isinstance(values, dict):
        raise InputError(f"{label}: a recipe is a mapping of keys to values, such as seed: 0")
    if faults:
        raise InputError(*(f"{label}:{fault}" for fault in faults))
    return values, lines


def _walk(node: yaml.Node, path: Location, lines: dict[Location, int]) -> Iterator[str]:
    """Notes the line of each key; yields a fault for each key written twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            dotted = ".".join(map(str, here))
            yield f"{line}: {dotted} is written twice (first on line {lines[here]}): keep one"
        lines[here] = line
        yield from _walk(value, here, lines)


def _validate(values: dict[str, Any], origins: dict[Location, str], faults: list[str]) -> Recipe:
    # `data:` with nothing under it is an empty section.
    values = {key: value for key, value in values.items() if value is not None}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        told = [_fault(item, origins) for item in _telling(error.errors(include_url=False))]
        raise InputError(*faults, *dict.fromkeys(told)) from error
    if faults:
        raise InputError(*faults)
    return recipe


def _telling(errors: list[Any]) -> list[Any]:
    """Without the faults of the branches of a union that were not meant.

    A union (a path, a list of paths and sources) is refused once for each of its branches: the
    branch that got furthest is the one that was written.
    """

    def place(item: Any) -> Location:
        return tuple(part for part in item["loc"] if not _is_branch(part))

    kept: list[Any] = []
    for item in errors:
        here = place(item)
        deeper = any(place(o)[: len(here)] == here != place(o) for o in errors)
        if not deeper and not any(place(other) == here for other in kept):
            kept.append(item)
    return kept


def _fault(item: Any, origins: dict[Location, str]) -> str:
    """One line of one pydantic error: where it stands, the dotted path, what to write instead."""
    path: Location = item["loc"]
    known = path
    while known and known not in origins:
        known = known[:-1]
    where = origins.get(known, "")
    if item["type"] == "extra_forbidden":
        if "DataSource" in path:
            word, fields = str(path[-1]), _by_alias(DataSource)
            return f"{where}data.pretrain has a source with the key {word!r}{nearest(word, fields)}"
        return where + (unknown_key(path) or f"unknown key {'.'.join(map(str, path))!r}")
    if path[:1] == ("data",):
        # A union (a path or a list of paths) adds the branch's name to the location.
        path = tuple(part for part in path if not _is_branch(part))
    if path[:2] == ("rl", "rewards"):
        # So does the kind of a part, behind its number.
        path = path[:3] + path[4:]
    dotted = ".".join(map(str, path)) or "recipe"
    given = item["input"]
    if item["type"] == "missing":
        return f"{where}{dotted} is missing{_choices(path)}"
    if isinstance(given, dict) or (item["type"] == "value_error" and not path):
        return f"{where}{dotted}: {_reason(item)}"
    if isinstance(item.get("ctx", {}).get("error"), ValueError) and isinstance(given, BaseModel):
        return f"{where}{dotted}: {_reason(item)}"
    return f"{where}{dotted}={_short(given)}: {_reason(item)}"


def _choices(path: Location) -> str:
    """What may be written for a field that has a few values."""
    section: type[BaseModel] | None = Recipe
    field: FieldInfo | None = None
    for part in path:
        field = _by_alias(section).get(str(part)) if section else None
        section = _section_of(field) if field else None
    options = get_args(field.annotation) if field else ()
    named = options and all(isinstance(option, str) for option in options)
    return f": write one of {', '.join(options)}" if named else ""


def _is_branch(part: str | int) -> bool:
    return str(part) in ("str", "DataSource", "float") or "[" in str(part)


def _short(value: Any) -> str:
    text = str(value) if value is not None else "null"
    return text if len(text) <= 60 else text[:57] + "..."


_REASONS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be names with a value for each",
    "model_type": "must be a section with keys of its own",
    "model_attributes_type": "must be a section with keys of its own",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be a plain name without slashes",
}


def _reason(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _REASONS:
        return _REASONS[kind]
    if kind == "literal_error":
        options = [
            option.strip(" '") for option in context["expected"].replace(" or ", ",").split(",")
        ]
        return f"must be one of {', '.join(options)}{nearest(str(item['input']), options)}"
    bounds = {
        "greater_than": ("above", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("below", "lt"),
        "less_than_equal": ("at most", "le"),
        "multiple_of": ("a multiple of", "multiple_of"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"must be {words} {context[key]:g}"
    message = item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if message[:2].istitle() else message
