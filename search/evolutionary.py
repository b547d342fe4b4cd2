"""CMA-ES over a space's genes.

The strategy comes from the package `cmaes`: small, pure numpy, seedable, with methods `ask` and
`tell` that keep the evaluation of candidates apart from the search, and with a state of plain
numbers that can be saved and restored. (`pycma` is larger; its state is a pickle, which can run
code when it is loaded.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from search.space import Gene, reflect
from search.strategies import Average, Strategy

SIGMA = 0.3  # usual first step size, in units of the genes
FAILED = 1.0  # the loss of a failed candidate; losses of others are -average, in [-1, 0]


def check_settings(
    genes: Sequence[Gene], budget: int | None, population: int | None, sigma: float
) -> None:
    """Refuse settings of `CmaEs`, or a budget of evaluations, with which there is no search.

    Raises:
        UserError: A setting is out of its range, or a gene starts outside its bounds.
    """
    if budget is not None and budget < 1:
        raise UserError(f"a budget of {budget} evaluations is none; give 1 or more")
    if population is not None and population < 2:
        raise UserError(f"a population of {population} has no ranks; give 2 or more")
    if population is not None and budget is not None and population > budget:
        raise UserError(
            f"a population of {population} does not fit into a budget of {budget} evaluations; "
            "give a smaller one, or none"
        )
    if not 0 < sigma < float("inf"):
        raise UserError(f"a sigma of {sigma:g} is no step size; give a number above 0")
    for gene in genes:
        if not gene.bounds[0] <= gene.start <= gene.bounds[1]:
            raise UserError(
                f"gene {gene.name} starts at {gene.start:g}, outside its bounds "
                f"{gene.bounds[0]:g} to {gene.bounds[1]:g}; set a value within them"
            )


class CmaEs(Strategy):
    """Covariance matrix adaptation, from the genes' starts.

    The start itself is the first generation and teaches the strategy nothing: what the search adds
    to the default setting can be read off its table. The strategy moves without bounds; what it
    asks for is reflected at the bounds of each gene.

    Args:
        genes: The genome with starts and bounds.
        population: Candidates in a generation; None for 4 + floor(3 ln n), the usual choice.
        sigma: Initial step size, in units of the genes.
        seed: Of the strategy's draws.

    Source:
        Hansen, The CMA evolution strategy: a tutorial, arXiv:1604.00772; merge coefficients as
        genome: Akiba et al., arXiv:2403.13187.
    """

    def __init__(
        self, genes: Sequence[Gene], *, population: int | None, sigma: float, seed: int
    ) -> None:
        from cmaes import CMA  # imports scipy.stats, which takes a second

        self._genes = list(genes)
        self._started = False
        self._asked: list[np.ndarray] = []
        # With two or three candidates two of three bounds are infinite; the least is taken.
        with np.errstate(divide="ignore"):
            self._cma = CMA(
                mean=np.array([gene.start for gene in genes], dtype=float),
                sigma=sigma,
                population_size=population,
                seed=seed,
            )

    @property
    def population(self) -> int:
        """Candidates in a generation."""
        return self._cma.population_size

    def ask(self) -> list[list[float]]:
        """Draw a generation; the first is the start alone."""
        if not self._started:
            return [[gene.start for gene in self._genes]]
        self._asked = [self._cma.ask() for _ in range(self._cma.population_size)]
        return [
            [reflect(float(v), *gene.bounds) for gene, v in zip(self._genes, values, strict=True)]
            for values in self._asked
        ]

    def tell(self, averages: Sequence[Average]) -> None:
        """Move towards the better half of the generation."""
        if not self._started:
            self._started = True
            return
        losses = [FAILED if average is None else -average for average in averages]
        self._cma.tell(list(zip(self._asked, losses, strict=True)))

    def state(self) -> dict[str, Any]:
        """Return mean, covariance, paths, step size and the generator's state.

        The package's own way drops the generator and keeps half of the covariance, whose halves
        differ by rounding: what follows would not be the same to the last bit.
        """
        values = {name: value for name, value in vars(self._cma).items() if name != "_rng"}
        draws = self._cma._rng.get_state(legacy=False)
        return {
            "started": self._started,
            "arrays": {k: v.tolist() for k, v in values.items() if isinstance(v, np.ndarray)},
            "numbers": {
                k: v.item() if isinstance(v, np.generic) else v
                for k, v in values.items()
                if not isinstance(v, np.ndarray)
            },
            "draws": draws
            | {"state": {"key": draws["state"]["key"].tolist(), "pos": int(draws["state"]["pos"])}},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a result of `state`."""
        self._started = state["started"]
        # The state may or may not hold a decomposition of the covariance.
        vars(self._cma).update(state["numbers"])
        vars(self._cma).update({name: np.array(v) for name, v in state["arrays"].items()})
        key = np.array(state["draws"]["state"]["key"], dtype=np.uint32)
        position = state["draws"]["state"]["pos"]
        self._cma._rng.set_state(state["draws"] | {"state": {"key": key, "pos": position}})
