"""What all parts of a configuration share: strict models, types of values, one-line messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from common.errors import UserError, nearest

Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    if len({str(item) for item in items}) < len(items):
        raise PydanticCustomError("distinct", "{items} has non-unique elements", {"items": items})
    return items


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(:[a-z0-9_.]+)*/[a-z0-9_]+$")]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Some = Annotated[list[Item], Field(min_length=1)]
Distinct = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]
Backend = Literal["hf", "vllm"]
Embeddings = Literal["base", "merged"]
Parameters = dict[str, Any]  # of a merge method; its registry entry checks them


class Entry(BaseModel):
    """A mapping of a configuration: only known keys, each value of its type, none changed later.

    `model_dump` returns the keys that have a value, as the configuration's file could say them.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                hint = nearest(key, cls.model_fields)
                raise PydanticCustomError("unknown", "unknown key", {"key": key, "hint": hint})
        return data

    @model_serializer(mode="wrap")
    def _without_gaps(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


def known(name: str, valid: Iterable[str], where: str, what: str, of: str = "") -> None:
    """Refuse a name that is not among the valid ones.

    Args:
        name: What was given.
        valid: The names that exist.
        where: The place in the configuration, for the message.
        what: What the name is of: ``case``, ``row`` ...
        of: What has the valid names, if not the experiment.

    Raises:
        UserError: One line with the nearest valid name.
    """
    valid = list(valid)
    if name not in valid:
        owner = f" of {of}" if of else ""
        raise UserError(f"{where}: unknown {what} {name!r}{owner}{nearest(name, valid)}")


def explain(error: ValidationError) -> str:
    """Put the first problem of a configuration, the least deep one, into one line.

    It has the place, what is wrong there and, where there is one, the nearest valid name.
    """
    first = min(error.errors(include_url=False), key=lambda each: len(each["loc"]))
    path = [str(part) for part in first["loc"] if part != "[key]"]
    where, kind, given = ".".join(path) or "the top level", first["type"], first["input"]
    if kind == "unknown":
        return f"unknown key {first['ctx']['key']!r} at {where}{first['ctx']['hint']}"
    if kind == "missing":
        return f"{'.'.join(path[:-1]) or 'the top level'} lacks the key {path[-1]!r}"
    # Pydantic begins with a word for any value ("Input should be ..."); the value says more.
    # Given as a function: what a file says may look like a group of the pattern.
    reason = re.sub(r"^\w+ should", lambda _: f"{given!r:.80} should", first["msg"])
    reason = re.sub("valid dictionary or .*", "mapping", reason)
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{where}: {reason}{nearest(str(given), valid) if valid else ''}"
    if kind == "float_type" and isinstance(given, str):
        reason += "; YAML reads 1e-3 as text, 1.0e-3 as a number"
    return f"{where}: {reason}"
