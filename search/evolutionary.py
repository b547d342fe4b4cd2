"""Evolutionary search: CMA-ES over merge coefficients per group of layers.

The strategy comes from the package `cmaes`: small, pure numpy, seedable, with bounds and an
ask-and-tell interface that keeps the evaluation of candidates apart from the search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cmaes import CMA

from common.errors import UserError
from merges import registry
from search.workbench import Evaluation

WEIGHT = (0.0, 2.0)  # from leaving an expert out to twice its usual weight
DENSITY = (0.05, 1.0)  # the lower end keeps the rescaling by 1 / density below 20
FAILED = 1.0  # the loss of a failed candidate; losses of others are -average, in [-1, 0]


@dataclass(frozen=True)
class Gene:
    """One number of a genome.

    Attributes:
        group: The group of tensors it belongs to: ``layer 0`` ..., ``rest``.
        parameter: The method's parameter: ``weights`` or ``density``.
        expert: Whose number it is; empty for a parameter that has one value for all.
        start: The default setting's value, where the search begins.
        bounds: Lowest and highest value.
    """

    group: str
    parameter: str
    expert: str
    start: float
    bounds: tuple[float, float]

    @property
    def name(self) -> str:
        """A short unique name for tables."""
        return " ".join(part for part in (self.parameter, self.expert, self.group) if part)


def genome(method: str, parameters: dict[str, Any], experts: Sequence[str], layers: int) -> list:
    """Describe what is searched for: each expert's weight, and the density, in each group.

    The groups are the decoder's layers and the rest (embedding, final norm, output head). A density
    that is set for each expert is searched for each.

    Args:
        method: A method with a parameter `weights` (and perhaps `density`).
        parameters: Its resolved parameters; they are the start.
        experts: The experts' names.
        layers: Number of decoder layers.

    Returns:
        The genes.

    Raises:
        UserError: The method has no searchable parameters.
    """
    known = registry.info(method).parameters
    if "weights" not in known:
        raise UserError(
            f"method {method} has no per-expert weights to search for; evolve one that has "
            "(python -m merges --list), or tune its parameters with `python -m search tune`"
        )
    genes = []
    for group in [*(f"layer {number}" for number in range(layers)), "rest"]:
        weights = parameters.get("weights")
        for expert, start in _by_expert(1.0 if weights is None else weights, experts).items():
            genes.append(Gene(group, "weights", expert, start, WEIGHT))
        if "density" in known:
            density = parameters["density"]
            if isinstance(density, float):
                genes.append(Gene(group, "density", "", density, DENSITY))
                continue
            for expert, start in _by_expert(density, experts).items():
                genes.append(Gene(group, "density", expert, start, DENSITY))
    return genes


def _by_expert(
    value: float | Sequence[float] | Mapping[str, float], experts: Sequence[str]
) -> dict[str, float]:
    """Spell out numbers per expert, in the order of the experts."""
    if isinstance(value, Mapping):
        return {expert: value[expert] for expert in experts}
    if isinstance(value, float):
        return dict.fromkeys(experts, value)
    return dict(zip(experts, value, strict=True))


def rules(genes: Sequence[Gene], values: Sequence[float]) -> list[dict[str, Any]]:
    """Decode a genome into layer rules as `merges.layers.LayerRules` takes them."""
    decoded: dict[str, dict[str, Any]] = {}
    for gene, value in zip(genes, values, strict=True):
        settings = decoded.setdefault(gene.group, {})
        if gene.expert:
            settings.setdefault(gene.parameter, {})[gene.expert] = float(value)
        else:
            settings[gene.parameter] = float(value)
    result = []
    for group, settings in decoded.items():
        if group == "rest":
            result.append({"match": r"^(?!.*\blayers\.\d)", "set": settings})
        else:
            number = int(group.removeprefix("layer "))
            result.append({"layers": [number, number], "set": settings})
    return result


def evolve(
    genes: Sequence[Gene],
    evaluate: Callable[[np.ndarray], Evaluation],
    *,
    budget: int,
    population: int | None,
    sigma: float,
    seed: int,
) -> np.ndarray:
    """Maximise the dev average with CMA-ES.

    The start, which is the method's default setting, is the first candidate; generations follow
    until the budget is spent. The last one may be cut short.

    Args:
        genes: The genome with starts and bounds.
        evaluate: Merges and scores one candidate.
        budget: Number of evaluations in all, at least 1.
        population: Candidates in a generation; None for 4 + floor(3 ln n), the usual choice.
        sigma: Initial step size, in units of the genes.
        seed: Of the strategy's draws.

    Returns:
        The best candidate's values.

    Raises:
        UserError: The budget is not positive, or smaller than the population asked for.

    Source:
        Hansen, The CMA evolution strategy: a tutorial, arXiv:1604.00772; merge coefficients as
        genome: Akiba et al., arXiv:2403.13187.
    """
    if budget < 1:
        raise UserError(f"a budget of {budget} evaluations is none; give 1 or more")
    if population is not None and population > budget:
        raise UserError(
            f"a population of {population} does not fit into a budget of {budget} evaluations; "
            "give a smaller one, or none"
        )
    strategy = CMA(
        mean=np.array([gene.start for gene in genes]),
        sigma=sigma,
        bounds=np.array([gene.bounds for gene in genes]),
        population_size=population,
        seed=seed,
    )
    best, best_loss, spent = None, np.inf, 0

    def loss(values: np.ndarray) -> float:
        nonlocal best, best_loss, spent
        spent += 1
        evaluation = evaluate(values)
        result = FAILED if evaluation.average is None else -evaluation.average
        if best is None or result < best_loss:
            best, best_loss = values, result
        return result

    loss(np.array([gene.start for gene in genes]))
    while spent < budget:
        generation = []
        while len(generation) < strategy.population_size and spent < budget:
            candidate = strategy.ask()
            generation.append((candidate, loss(candidate)))
        if len(generation) == strategy.population_size:
            strategy.tell(generation)
    return best
