"""Read a TOML file into a pydantic model; errors name the file, the key and the remedy."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpath.core.errors import ConfigError


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
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", remedy="check the path given to --config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder", remedy="name the .toml file itself") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", remedy="correct the file at that place") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", remedy="check the path and its rights") from None
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _explain(path, schema, error) from None


def _explain(path: Path, schema: type[BaseModel], error: ValidationError) -> ConfigError:
    """Turn the first fault of a validation into one line and a remedy."""
    fault = error.errors(include_url=False)[0]
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
    table = f"[{'.'.join(location[:-1])}]" if len(location) > 1 else "the top level"
    match fault["type"]:
        case "missing":
            return ConfigError(f"{path}: key '{key}' is missing{more}", remedy=f"add '{location[-1]}' to {table}")
        case "extra_forbidden":
            known = _keys_at(schema, location[:-1])
            near = difflib.get_close_matches(location[-1], known, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"remove it; {table} knows: {', '.join(sorted(known))}"
            return ConfigError(f"{path}: key '{key}' is unknown{more}", remedy=remedy)
        case _:
            reason = fault["msg"].removeprefix("Value error, ")
            if not key:
                return ConfigError(f"{path}: {reason}{more}", remedy="correct what is said there")
            value = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
            return ConfigError(f"{path}: key '{key}'{value}: {reason}{more}", remedy=f"correct '{key}' in that file")


def _keys_at(schema: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys the schema knows in the table at ``location``."""
    current: Any = schema
    for part in location:
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        current = field.annotation if field is not None else None
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
