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
from pydantic_core import ErrorDetails, PydanticCustomError

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
    """A mapping of a configuration: only known keys, each value of its type, none changed later."""

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

    def given(self) -> dict[str, Any]:
        """Return the keys that have a value, as the configuration's file could say them."""
        return self.model_dump()


def known(name: str, valid: Iterable[str], where: str, what: str) -> None:
    """Refuse a name that is not among the valid ones.

    Args:
        name: What was given.
        valid: The names that exist.
        where: The place in the configuration, for the message.
        what: What the name is of: ``case``, ``row`` ...

    Raises:
        UserError: One line with the nearest valid name.
    """
    valid = list(valid)
    if name not in valid:
        raise UserError(f"{where}: unknown {what} {name!r}{nearest(name, valid)}")


_TYPES = {
    "int_type": "integer",
    "float_type": "number",
    "string_type": "string",
    "bool_type": "boolean",
    "list_type": "array",
    "dict_type": "mapping",
    "model_type": "mapping",
}
_RANGES = {
    "greater_than_equal": ("ge", "less than the minimum of"),
    "less_than_equal": ("le", "greater than the maximum of"),
    "greater_than": ("gt", "not greater than"),
    "less_than": ("lt", "not less than"),
}


def _reason(error: ErrorDetails) -> str:
    kind, value, context = error["type"], repr(error["input"])[:80], error.get("ctx", {})
    if kind in _TYPES:
        exponent = kind == "float_type" and isinstance(error["input"], str)
        hint = "; YAML reads 1e-3 as text, 1.0e-3 as a number" if exponent else ""
        return f"{value} is not of type {_TYPES[kind]!r}{hint}"
    if kind in _RANGES:
        name, words = _RANGES[kind]
        return f"{value} is {words} {context[name]:g}"
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        if not valid:
            return f"{context['expected']} was expected, not {value}"
        return f"{value} is not one of the valid values{nearest(str(error['input']), valid)}"
    if kind == "string_pattern_mismatch":
        return f"{value} does not match {context['pattern']!r}"
    if kind == "too_short":
        return f"{value} is empty; give at least one"
    return error["msg"]


def explain(error: ValidationError) -> str:
    """Put the first problem of a configuration, the least deep one, into one line.

    Args:
        error: What the models refused.

    Returns:
        The place, what is wrong there and, where there is one, the nearest valid name.
    """
    first = min(error.errors(include_url=False), key=lambda each: len(each["loc"]))
    *above, last = ["", *(str(part) for part in first["loc"] if part != "[key]")]
    where, parent = (".".join(path[1:]) or "the top level" for path in ([*above, last], above))
    if first["type"] == "unknown":
        return f"unknown key {first['ctx']['key']!r} at {where}{first['ctx']['hint']}"
    if first["type"] == "missing":
        return f"{parent} lacks the key {last!r}"
    return f"{where}: {_reason(first)}"
