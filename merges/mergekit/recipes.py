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
    """One of mergekit's parameters: ours, mergekit's default (None where it must be given)."""

    ours: str
    default: Any
    turn: Callable[[Any], Any] = _same


@dataclass(frozen=True)
class Recipe:
    """One of mergekit's methods in our words.

    Attributes:
        ours: Our method.
        shared: Its parameters that are one for all models.
        each: Its parameters that are one for each expert.
        fixed: Ours that mergekit has no word for.
        with_base: Ours where a base model is given.
        base_is_expert: Whether a base model among the models is merged like the others.
    """

    ours: str
    shared: Mapping[str, Word] = field(default_factory=dict)
    each: Mapping[str, Word] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    with_base: Mapping[str, Any] = field(default_factory=dict)
    base_is_expert: bool = False


_WEIGHT = {"weight": Word("weights", None)}
_SPARSE = {**_WEIGHT, "density": Word("density", 1.0)}
_LAMBDA = {"lambda": Word("scale", 1.0)}
_GAMMA = {"gamma": Word("gamma", 0.01)}
_EPSILON = {"epsilon": Word("epsilon", 0.15)}


def _sparse(merge: bool, rescale: bool) -> dict[str, Word]:
    """Lambda, normalize and rescale of a method with sign election, with their defaults."""
    return {
        **_LAMBDA,
        "normalize": Word("merge", merge, _mean_if),
        "rescale": Word("rescale", rescale, _l1_if),
    }


def _linear(rescale: bool) -> dict[str, Word]:
    """The same of a method without it."""
    return {
        **_LAMBDA,
        "normalize": Word("normalize", False),
        "rescale": Word("rescale", rescale, _l1_if),
    }


RECIPES = {
    "linear": Recipe(
        "linear", {"normalize": Word("normalize", True)}, _WEIGHT, base_is_expert=True
    ),
    "slerp": Recipe("slerp", {"t": Word("t", None)}, base_is_expert=True),
    "nuslerp": Recipe(
        "nuslerp",
        {
            "nuslerp_flatten": Word("along", True),
            "nuslerp_row_wise": Word("along", False),
        },
        _WEIGHT,
        with_base={"origin": "base"},
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
    "ties": Recipe("ties", {**_LAMBDA, "normalize": Word("merge", True, _mean_if)}, _SPARSE),
    "dare_ties": Recipe("dare_ties", _sparse(False, True), _SPARSE),
    "dare_linear": Recipe("dare_linear", _linear(True), _SPARSE),
    "breadcrumbs": Recipe("breadcrumbs", _linear(False), {**_SPARSE, **_GAMMA}),
    "breadcrumbs_ties": Recipe("breadcrumbs_ties", _sparse(False, False), {**_SPARSE, **_GAMMA}),
    "della": Recipe("della", _sparse(True, True), {**_SPARSE, **_EPSILON}),
    "della_linear": Recipe("della_linear", _linear(True), {**_SPARSE, **_EPSILON}),
    "sce": Recipe("sce", {"select_topk": Word("density", 1.0)}, fixed={"negligible": 1e-6}),
}
IGNORED = ("int8_mask",)  # only how mergekit holds its masks
# Taken by methods without sparsification too, and without effect there.
IDLE = {"task_arithmetic": ("density", "rescale"), "ties": (), "linear": ("density",)}
