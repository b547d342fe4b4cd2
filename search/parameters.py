"""The parameter space: a method's weights and densities, per group of layers and module kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from checkpoints.names import is_embedding, is_head, kind
from common.errors import UserError
from merges.engine import registry
from merges.engine.config import MergeConfig
from merges.engine.stacks import count_layers, layer_of
from search.merged import MergedSpace
from search.space import Gene, Recipe

Kinds = Literal["together", "separate"]
KINDS: tuple[Kinds, ...] = ("together", "separate")
BOUNDS = {
    "weights": (0.0, 2.0),  # from leaving an expert out to twice its usual weight
    "density": (0.05, 1.0),  # the lower end keeps DARE's rescaling by 1 / density at most 20
    "t": (0.0, 1.0),  # from the one expert to the other
}
_ATTENTION = r"\b(?:self_attn|attn|attention)\b"
# Each parameter of a layer matches one of these. An attention's own norms count as norms.
_IN_LAYER = {
    "attention": rf"^(?!.*norm).*{_ATTENTION}",
    "mlp": rf"^(?!.*norm)(?!.*{_ATTENTION})",
    "norms": "norm",
}


@dataclass(frozen=True)
class Group:
    """Parameters that share their genes.

    Attributes:
        name: For tables: ``layer 0``, ``layers 0-3 mlp``, ``rest``, ``lm_head``.
        rule: What chooses them, as `merges.engine.layer_rules.LayerRules` takes it: match, layers
        or both.
    """

    name: str
    rule: dict[str, Any]


def _kind_in_layer(tensor: str) -> str:
    return next(name for name, pattern in _IN_LAYER.items() if re.search(pattern, tensor))


def _kind_outside(tensor: str) -> str:
    if is_embedding(tensor):
        return "embeddings"
    if is_head(tensor):
        return "lm_head"
    return "norms" if kind(tensor) == "norm" else "other"


def groups(
    tensors: Collection[str],
    granularity: int = 1,
    kinds: Kinds = "together",
    policy: str = "merged",
) -> list[Group]:
    """Divide a model's parameters into groups, each parameter in one.

    Args:
        tensors: The parameters' names.
        granularity: Layers in a group; the last group may have fewer.
        kinds: ``together``, or ``separate`` for attention, mlp and norms of a group of layers, and
            for embeddings, norms and lm_head outside the layers, which are otherwise the ``rest``.
        policy: ``base`` leaves out groups of which every parameter is the base's.

    Returns:
        The groups: by layers from the first, then those outside the layers.

    Raises:
        UserError: The granularity is not positive.
    """
    if granularity < 1:
        raise UserError(f"a granularity of {granularity} layers is none; give 1 or more")
    layers = count_layers(tensors)
    names = [n for n in sorted(tensors) if policy != "base" or kind(n) not in ("embedding", "norm")]
    found = []
    for first in range(0, layers, granularity):
        last = min(first + granularity, layers) - 1
        title = f"layer {first}" if granularity == 1 else f"layers {first}-{last}"
        rule = {"layers": [first, last]}
        inside = [n for n in names if (at := layer_of(n)) and first <= at.number <= last]
        present = {_kind_in_layer(name) for name in inside}
        # A group of which nothing is merged would only add genes without effect.
        if kinds == "together":
            found += [Group(title, rule)] if inside else []
        else:
            found += [
                Group(f"{title} {name}", {"match": pattern} | rule)
                for name, pattern in _IN_LAYER.items()
                if name in present
            ]
    outside: dict[str, list[str]] = {}
    for name in names:
        if layer_of(name) is None:
            place = "rest" if kinds == "together" else _kind_outside(name)
            outside.setdefault(place, []).append(re.escape(name))
    return found + [
        Group(place, {"match": f"^(?:{'|'.join(members)})$"})
        for place, members in sorted(outside.items())
    ]


def _by_expert(
    value: float | Sequence[float] | Mapping[str, float], experts: Sequence[str]
) -> dict[str, float]:
    """Spell out numbers per expert, in the order of the experts."""
    if isinstance(value, Mapping):
        return {expert: value[expert] for expert in experts}
    if isinstance(value, float):
        return dict.fromkeys(experts, value)
    return dict(zip(experts, value, strict=True))


def check_method(method: str, parameters: Mapping[str, Any] = {}) -> None:
    """Refuse a method that has nothing to search for.

    Raises:
        UserError: It has none of the parameters, or takes none that differ between layers.
    """
    info = registry.info(method)
    if info.whole_model or not set(BOUNDS) & set(info.parameters):
        raise UserError(
            f"method {method} has no searchable parameters ({', '.join(BOUNDS)} by layer); evolve "
            "one that has (python -m merges --list), or tune it with `python -m search tune`"
        )
    if parameters.get("scope") == "model":
        raise UserError(
            f"method {method}: scope=model looks at the whole model at once and takes no "
            "parameters by layer; evolve it with scope=tensor"
        )


def genome(
    method: str, parameters: Mapping[str, Any], experts: Sequence[str], where: Sequence[Group]
) -> tuple[Gene, ...]:
    """Describe what is searched for: in each group the weights, the densities, or SLERP's t.

    A density has a gene for all experts where its start is one number, else one for each.

    Args:
        method: A method with a parameter of `BOUNDS`.
        parameters: Its resolved parameters; they are the start.
        experts: The experts' names.
        where: The groups.

    Raises:
        UserError: The method has no searchable parameters.
    """
    check_method(method, parameters)
    genes = []
    for group in where:
        for name in BOUNDS:
            if name not in registry.info(method).parameters:
                continue
            start = parameters[name]
            if name == "weights":
                start = _by_expert(1.0 if start is None else start, experts)
            elif not isinstance(start, float):
                start = _by_expert(start, experts)
            each = start if isinstance(start, dict) else {"": start}
            genes += [Gene(group.name, name, who, at, BOUNDS[name]) for who, at in each.items()]
    return tuple(genes)


class ParameterSpace(MergedSpace):
    """A method's merges with parameters that differ between groups of a model's parameters.

    Args:
        merging: The method and the models.
        fixed: Parameters that are not searched for, and where the search begins.
        granularity: Layers in a group.
        kinds: Whether the module kinds of a group share their genes; see `groups`.

    Raises:
        UserError: The method has no searchable parameters, or a value is out of its range.

    Source:
        Akiba et al., Evolutionary optimization of model merging recipes, arXiv:2403.13187,
        section 3.1: weights and densities by layer, for DARE-TIES.
    """

    def __init__(
        self,
        merging: MergeConfig,
        fixed: Mapping[str, Any],
        granularity: int = 1,
        kinds: Kinds = "together",
    ) -> None:
        super().__init__(merging)
        self._fixed = registry.validate(merging.method, fixed)
        self._about = {"granularity": granularity, "kinds": kinds}
        names, policy = merging.reference.names(), merging.embeddings_and_norms
        self._groups = groups(names, granularity, kinds, policy)
        self.genes = genome(merging.method, self._fixed, list(merging.experts), self._groups)

    def describe(self) -> dict[str, Any]:
        """Return the method, its start, and how the parameters are grouped."""
        return super().describe() | {"space": "parameter", "set": self._fixed} | self._about

    def decode(self, values: Sequence[float]) -> Recipe:
        """Turn a genome into layer rules as `merges.engine.layer_rules.LayerRules` takes them."""
        decoded: dict[str, dict[str, Any]] = {group.name: {} for group in self._groups}
        for gene, value in zip(self.genes, values, strict=True):
            settings = decoded[gene.group]
            if gene.expert:
                settings.setdefault(gene.parameter, {})[gene.expert] = float(value)
            else:
                settings[gene.parameter] = float(value)
        return {
            "set": self._fixed,
            "set_layers": [group.rule | {"set": decoded[group.name]} for group in self._groups],
        }
