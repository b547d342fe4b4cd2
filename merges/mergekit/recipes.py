"""mergekit's methods and their parameters in our words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def _same(value: Any) -> Any:
    return value


def _mean_if(value: bool) -> str:
    return "mean" if value else "sum"


def _l1_if(value: bool) -> str:
    return "l1" if value else "none"


@dataclass(frozen=True)
class Word:
    """One of mergekit's parameters: our name of it, mergekit's default, what it is in ours.

    Attributes:
        ours: Our parameter.
        default: mergekit's default, None where it must be given; its type is the parameter's.
        turn: Makes our value of mergekit's.
    """

    ours: str
    default: Any = None
    turn: Callable[[Any], Any] = _same

    def read(self, value: Any) -> Any:
        """Read a value as mergekit does, so also numbers that YAML takes for text, such as 1e-3.

        Raises:
            ValueError: It is of another type.
        """
        if isinstance(self.default, bool):
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            raise ValueError(f"{value!r} is neither true nor false")
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            number = float(value)
            if isinstance(self.default, int) and number != int(number):
                raise ValueError
        except (ValueError, OverflowError):
            what = "whole number" if isinstance(self.default, int) else "number"
            raise ValueError(f"{value!r} is no {what}") from None
        return int(number) if isinstance(self.default, int) else number


@dataclass(frozen=True)
class Recipe:
    """One of mergekit's methods in our words.

    Attributes:
        ours: Our method.
        shared: Its parameters that are one for all models.
        each: Its parameters that are one for each expert.
        only: Parameters of which we have the default alone.
        fixed: Ours that mergekit has no word for.
        with_base: Ours where a base model is given.
        join: Changes our parameters where one of them takes several of mergekit's words.
        base_is_expert: Whether a base model is merged like the others.
    """

    ours: str
    shared: Mapping[str, Word] = field(default_factory=dict)
    each: Mapping[str, Word] = field(default_factory=dict)
    only: Mapping[str, Word] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    with_base: Mapping[str, Any] = field(default_factory=dict)
    join: Callable[[dict[str, Any]], dict[str, Any]] = _same
    base_is_expert: bool = False


_WEIGHT = {"weight": Word("weights")}
_SPARSE = {**_WEIGHT, "density": Word("density", 1.0)}
_LAMBDA = {"lambda": Word("scale", 1.0)}
_GAMMA = {"gamma": Word("gamma", 0.01)}
_EPSILON = {"epsilon": Word("epsilon", 0.15)}


def _elected(merge: bool, rescale: bool) -> dict[str, Word]:
    """Return the shared parameters of a method with sign election, with their defaults."""
    return {
        **_LAMBDA,
        "normalize": Word("merge", merge, _mean_if),
        "rescale": Word("rescale", rescale, _l1_if),
    }


def _summed(rescale: bool) -> dict[str, Word]:
    """Return the shared parameters of a method without it."""
    return {
        **_LAMBDA,
        "normalize": Word("normalize", False),
        "rescale": Word("rescale", rescale, _l1_if),
    }


def _along(values: dict[str, Any]) -> dict[str, Any]:
    """Say along what NuSLERP's vectors are."""
    rest = {name: value for name, value in values.items() if name not in ("flatten", "row_wise")}
    along = "tensor" if values["flatten"] else "columns" if values["row_wise"] else "rows"
    return {**rest, "along": along}


RECIPES = {
    "linear": Recipe(
        "linear", {"normalize": Word("normalize", True)}, _WEIGHT, base_is_expert=True
    ),
    "slerp": Recipe("slerp", {"t": Word("t")}, base_is_expert=True),
    "nuslerp": Recipe(
        "nuslerp",
        {"nuslerp_flatten": Word("flatten", True), "nuslerp_row_wise": Word("row_wise", False)},
        _WEIGHT,
        with_base={"origin": "base"},
        join=_along,
    ),
    "multislerp": Recipe(
        "multislerp",
        {"normalize_weights": Word("normalize", True), "eps": Word("epsilon", 1e-8)},
        _WEIGHT,
        with_base={"origin": "base"},
    ),
    "karcher": Recipe(
        "karcher",
        {"max_iter": Word("max_iterations", 10), "tol": Word("tolerance", 1e-5)},
        base_is_expert=True,
    ),
    "model_stock": Recipe(
        "model_stock",
        {"filter_wise": Word("along", False, lambda rows: "rows" if rows else "tensor")},
        fixed={"average": "cosines", "floor": 1e-6},
    ),
    "task_arithmetic": Recipe(
        "task_arithmetic", {**_LAMBDA, "normalize": Word("normalize", False)}, _WEIGHT
    ),
    "ties": Recipe(
        "ties",
        {**_LAMBDA, "normalize": Word("merge", True, _mean_if)},
        _SPARSE,
        only={"rescale": Word("rescale", False)},
    ),
    "dare_ties": Recipe("dare_ties", _elected(False, True), _SPARSE),
    "dare_linear": Recipe("dare_linear", _summed(True), _SPARSE),
    "breadcrumbs": Recipe("breadcrumbs", _summed(False), {**_SPARSE, **_GAMMA}),
    "breadcrumbs_ties": Recipe("breadcrumbs_ties", _elected(False, False), {**_SPARSE, **_GAMMA}),
    "della": Recipe("della", _elected(True, True), {**_SPARSE, **_EPSILON}),
    "della_linear": Recipe("della_linear", _summed(True), {**_SPARSE, **_EPSILON}),
    "sce": Recipe("sce", {"select_topk": Word("density", 1.0)}, fixed={"negligible": 1e-6}),
    "nearswap": Recipe("nearswap", {"t": Word("t")}),
    "passthrough": Recipe("passthrough", each={"scale": Word("scale", 1.0)}, base_is_expert=True),
    "arcee_fusion": Recipe("arcee_fusion"),
    "ram": Recipe("ram", {"epsilon": Word("epsilon", 1e-5)}),
    "ramplus_tl": Recipe(
        "ram_plus",
        {
            "r": Word("r", 0.1),
            "alpha": Word("alpha", 0.2),
            "epsilon": Word("epsilon", 1e-5),
        },
        fixed={"scope": "tensor"},
    ),
}
SILENT = ("int8_mask",)  # how mergekit holds its masks; the result is the same
WORDS = {
    *SILENT,
    *(
        word
        for recipe in RECIPES.values()
        for words in (recipe.shared, recipe.each, recipe.only)
        for word in words
    ),
}
