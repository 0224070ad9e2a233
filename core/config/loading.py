"""Read a TOML file into a pydantic model; errors name the file, the key and the remedy."""

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fedpath.core.errors import ConfigError, did_you_mean


class Section(BaseModel):
    """A table of a configuration file: frozen; unknown keys, other types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


FilePath = Annotated[Path, Field(strict=False)]
"""A path, written as text."""
S = TypeVar("S", bound=Section)


def load_toml(path: Path, schema: type[S]) -> S:
    """Load ``path`` as ``schema``.

    Raises:
        ConfigError: the file is missing, not TOML, or does not fit the schema; the first fault is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", remedy="check the path given to --config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder", remedy="name the .toml file itself") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", remedy="correct the file at that place") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", remedy="check the path and its rights") from None
    return parse_toml(text, path, schema)


def parse_toml(text: str, path: Path, schema: type[S]) -> S:
    """Read a text as ``schema``.

    Args:
        text: TOML.
        path: what errors call it.
        schema: of the text.

    Raises:
        ConfigError: it is not TOML, or does not fit the schema; the first fault is named.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", remedy="correct the file at that place") from None
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _explain(path, schema, error) from None


@dataclass(slots=True)
class _Place:
    """Where a fault is, as it stands in the file."""

    keys: list[str]
    """From the top, or from the table of a list of tables (``[[stage]]``), down."""
    known: list[str]
    """What could stand in the place of the last key; of a table that chooses by a tag, the tags."""
    entry: str = ""
    """In a list of tables, which one: "stage 2 ('fine-tune')"."""
    lists: str = ""
    """And the list's name: "stage"."""

    def key(self, name: str = "") -> str:
        """Name the key, or one below it."""
        key = ".".join([*self.keys, name] if name else self.keys)
        return ", ".join(filter(None, (self.entry, f"key '{key}'" if key else "")))

    def table(self, depth: int = 0) -> str:
        """Name the table of the last key, or with ``depth`` 1 that of the keys below it."""
        keys = self.keys[: len(self.keys) - 1 + depth]
        if self.lists:
            return f"[{'.'.join([self.lists, *keys])}]" if keys else f"[[{self.lists}]]"
        return f"[{'.'.join(keys)}]" if keys else "the top level"


def _explain(path: Path, schema: type[BaseModel], error: ValidationError) -> ConfigError:
    """Turn the first fault of a validation into one line and a remedy."""
    faults = error.errors(include_url=False)
    fault = next((other for other in faults[1:] if _misspells(other, faults[0])), faults[0])
    place = _written(schema, fault["loc"])
    key, known = place.key(), place.known
    more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
    facts = fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return ConfigError(f"{path}: {key} is missing{more}", remedy=f"add '{place.keys[-1]}' to {place.table()}")
        case "extra_forbidden":
            otherwise = f"remove it; {place.table()} knows: {', '.join(sorted(known))}"
            return ConfigError(f"{path}: {key} is unknown{more}", remedy=did_you_mean(place.keys[-1], known, otherwise))
        case "union_tag_not_found":
            name = facts["discriminator"].strip("'")
            return ConfigError(
                f"{path}: {place.key(name)} is missing{more}",
                remedy=f"add '{name}' to {place.table(1)}: {', '.join(known)}",
            )
        case "union_tag_invalid":
            name = facts["discriminator"].strip("'")
            remedy = did_you_mean(facts["tag"], known, f"use one of: {', '.join(known)}")
            return ConfigError(f"{path}: {place.key(name)} = '{facts['tag']}' is unknown{more}", remedy=remedy)
        case "model_attributes_type" | "model_type" | "dict_type":
            reason = f"{key} = {fault['input']!r}: should be a table"
            return ConfigError(f"{path}: {reason}{more}", remedy=f"write it as {place.table(1)}, with its keys below")
        case _:
            reason = fault["msg"].removeprefix("Value error, ")
            if not key:
                return ConfigError(f"{path}: {reason}{more}", remedy="correct what is said there")
            value = "" if _holds_tables(fault["input"]) else f" = {fault['input']!r}"
            remedy = facts.get("remedy", f"correct '{'.'.join(place.keys) or place.lists}' in that file")
            return ConfigError(f"{path}: {key}{value}: {reason}{more}", remedy=remedy)


def _holds_tables(value: object) -> bool:
    """Return whether a value is too much to be shown: a table, or a list of them."""
    return isinstance(value, dict | BaseModel) or (isinstance(value, list) and any(map(_holds_tables, value)))


def _misspells(unknown: ErrorDetails, missing: ErrorDetails) -> bool:
    """Return whether one fault is a key that was meant to be the one that another fault misses."""
    return (
        (missing["type"], unknown["type"]) == ("missing", "extra_forbidden")
        and missing["loc"][:-1] == unknown["loc"][:-1]
        and bool(difflib.get_close_matches(str(unknown["loc"][-1]), [str(missing["loc"][-1])]))
    )


def _written(schema: type[BaseModel], location: tuple[str | int, ...]) -> _Place:
    """Return a fault's place as it stands in the file, and what could stand there.

    Pydantic puts the tag of a chosen table (``type = "number"``) into the place, and a mark for a faulty name.
    """
    place = _Place([], [])
    current: Any = schema
    for part in location:
        tagged = _tagged(current)
        if str(part) in tagged:
            current = tagged[str(part)]
            if place.entry and not place.keys:
                place.entry += f" ('{part}')"
        elif isinstance(part, int) and (inner := _tables_of(current)) is not None:
            place = _Place([], [], entry=f"{'.'.join(place.keys)} {part + 1}", lists=".".join(place.keys))
            current = inner
        elif part != "[key]":
            place.keys.append(str(part))
            current, place.known = _below(current, str(part))
    place.known = list(_tagged(current)) or place.known
    return place


def _tables_of(annotation: Any) -> Any:
    """Return what the entries of a list of tables are; None for anything else."""
    for inner in _alternatives(annotation):
        if get_origin(inner) is list:
            (entry,) = get_args(inner)
            tables = [isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _alternatives(entry)]
            return entry if any(tables) else None
    return None


def _below(annotation: Any, part: str) -> tuple[Any, list[str]]:
    """Return the type one key further down, and all keys that are known beside it."""
    for inner in _alternatives(annotation):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            field = inner.model_fields.get(part)
            return (None if field is None else field.annotation), list(inner.model_fields)
        if get_origin(inner) in (dict, list):
            return get_args(inner)[-1], []
    return None, []


def _tagged(annotation: Any) -> dict[str, Any]:
    """Return the tables that a union chooses from by their tags; nothing for anything else."""
    tables = [inner for inner in _alternatives(annotation) if isinstance(inner, type) and issubclass(inner, BaseModel)]
    return {
        str(tag): table
        for table in (tables if len(tables) > 1 else [])
        for field in table.model_fields.values()
        if get_origin(field.annotation) is Literal
        for tag in get_args(field.annotation)
    }


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types of a union, or the one there is, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for argument in get_args(annotation) for inner in _alternatives(argument)]
    return [annotation]
