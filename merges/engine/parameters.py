"""Types of merge parameters: annotations that say the valid range and check a value.

A method's keyword-only parameters are annotated with these aliases, with ``Literal[...]`` of
texts, with ``dict[Literal[...], float]`` for named terms, or with any of them ``| None``.
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from common.errors import UserError, nearest


class Kind(ABC):
    """What values a parameter takes. `describe` says it in words, `check` refuses others."""

    @property
    def per_expert(self) -> bool:
        """Whether the value holds a number for each expert."""
        return False

    @abstractmethod
    def describe(self) -> str:
        """Return the valid values in words."""

    @abstractmethod
    def check(self, value: Any) -> Any:
        """Return the value in its proper type, or raise ValueError with the reason."""


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Number(Kind):
    """A finite number between bounds."""

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    integer: bool = False

    def describe(self) -> str:
        what = "integer" if self.integer else "number"
        if self.low == -math.inf:
            return f"finite {what}"
        if self.high == math.inf:
            return f"{what} {'>=' if self.low_included else '>'} {self.low:g}"
        return f"{what} in {'[' if self.low_included else '('}{self.low:g}, {self.high:g}]"

    def check(self, value: Any) -> float | int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = "; YAML reads 1e-3 as text, 1.0e-3 as a number" if isinstance(value, str) else ""
            raise ValueError(f"{_shown(value)} is no number{hint}")
        if not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        if self.integer and value != int(value):
            raise ValueError(f"{value} is not whole")
        if value < self.low or value > self.high or (value == self.low and not self.low_included):
            raise ValueError(f"{value} is out of range")
        return int(value) if self.integer else float(value)


@dataclass(frozen=True)
class Boolean(Kind):
    """True or false."""

    def describe(self) -> str:
        return "true or false"

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"{_shown(value)} is neither true nor false")
        return value


@dataclass(frozen=True)
class Choice(Kind):
    """One of some texts."""

    choices: tuple[str, ...]

    def describe(self) -> str:
        return " | ".join(self.choices)

    def check(self, value: Any) -> str:
        if value not in self.choices:
            raise ValueError(f"{_shown(value)} is unknown{nearest(str(value), self.choices)}")
        return value


@dataclass(frozen=True)
class PerExpert(Kind):
    """A number for each expert, by position or by name; the engine hands methods a list."""

    number: Number

    @property
    def per_expert(self) -> bool:
        return True

    def describe(self) -> str:
        return (
            f"one {self.number.describe()} per expert: a list in the order of --experts, "
            "or a mapping by expert name"
        )

    def check(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): self.number.check(number) for name, number in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.number.check(number) for number in value]
        raise ValueError(f"{_shown(value)} is neither a list nor a mapping of numbers")


@dataclass(frozen=True)
class OneOrPerExpert(PerExpert):
    """A number for all experts, or one for each; the engine hands methods a list."""

    def describe(self) -> str:
        return f"{self.number.describe()}, or {super().describe()}"

    def check(self, value: Any) -> Any:
        if isinstance(value, Mapping | list | tuple):
            return super().check(value)
        return self.number.check(value)


@dataclass(frozen=True)
class Terms(Kind):
    """Finite numbers by name; the names are any, or some that are known."""

    known: tuple[str, ...] = ()

    def describe(self) -> str:
        names = f" of {' | '.join(self.known)}" if self.known else ""
        return f"mapping{names} to finite numbers"

    def check(self, value: Any) -> dict[str, float]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{_shown(value)} is no mapping")
        for name in value:
            if self.known and name not in self.known:
                raise ValueError(f"it has no term {name!r}{nearest(str(name), self.known)}")
        return {str(name): Number().check(number) for name, number in value.items()}


@dataclass(frozen=True)
class Optional(Kind):
    """A value of another kind, or none."""

    kind: Kind

    @property
    def per_expert(self) -> bool:
        return self.kind.per_expert

    def describe(self) -> str:
        return f"{self.kind.describe()}; or null"

    def check(self, value: Any) -> Any:
        return None if value is None else self.kind.check(value)


# Methods receive a list, in the order of the experts. A signature's default may be one number for
# all of them, which no type of lists allows.
_Numbers = Any
Density = Annotated[float, Number(0, 1, low_included=False)]
Densities = Annotated[_Numbers, OneOrPerExpert(Number(0, 1, low_included=False))]
Fraction = Annotated[float, Number(0, 1)]
Fractions = Annotated[_Numbers, OneOrPerExpert(Number(0, 1))]
Scale = Annotated[float, Number()]
Scales = Annotated[_Numbers, OneOrPerExpert(Number())]
NonNegative = Annotated[float, Number(0)]
NonNegatives = Annotated[_Numbers, OneOrPerExpert(Number(0))]
Positive = Annotated[float, Number(0, low_included=False)]
LearningRate = Annotated[float, Number(0, low_included=False)]
Count = Annotated[int, Number(0, integer=True)]
PositiveCount = Annotated[int, Number(1, integer=True)]
Flag = Annotated[bool, Boolean()]
Weights = Annotated[list[float] | None, Optional(PerExpert(Number()))]
NonNegativeWeights = Annotated[list[float] | None, Optional(PerExpert(Number(0)))]
Coefficients = Annotated[dict[str, float], Terms()]

_ALIASES: dict[str, Kind] = {
    name: get_args(alias)[1]
    for name, alias in list(globals().items())
    if name[0].isupper() and hasattr(alias, "__metadata__")
}


def _literal_texts(node: ast.expr) -> tuple[str, ...] | None:
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Literal"
    ):
        choices = ast.literal_eval(node.slice)
        choices = choices if isinstance(choices, tuple) else (choices,)
        if all(isinstance(choice, str) for choice in choices):
            return choices
    return None


def _kind_of(node: ast.expr) -> Kind | None:
    if isinstance(node, ast.Name):
        return _ALIASES.get(node.id)
    if texts := _literal_texts(node):
        return Choice(texts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left = _kind_of(node.left)
        if left and isinstance(node.right, ast.Constant) and node.right.value is None:
            return Optional(left)
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("dict", "Mapping")
        and isinstance(node.slice, ast.Tuple)
        and (texts := _literal_texts(node.slice.elts[0]))
    ):
        return Terms(texts)
    return None


def resolve(annotation: str) -> Kind:
    """Find what values an annotation stands for, from its source text alone.

    Args:
        annotation: As written in the method's signature: ``Density``, ``Literal["mean", "sum"]``,
            ``Count | None``, ``dict[Literal["kl", "mse"], float]``.

    Raises:
        UserError: The annotation is none of the known forms.
    """
    kind = _kind_of(ast.parse(annotation, mode="eval").body)
    if kind is None:
        raise UserError(
            f"unknown parameter type {annotation}{nearest(annotation, _ALIASES)}; "
            "merges/engine/parameters.py lists the types"
        )
    return kind
