"""Rows: the merges that every case's table compares, and how each is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from common.errors import UserError, nearest
from merges.engine import registry
from search.parameters import check_method
from search.sources import PARAMETER_SPACE_ONLY
from workflow.config.entry import (
    Backend,
    Count,
    Embeddings,
    Entry,
    Name,
    Parameters,
    Positive,
    Some,
    known,
)

SEARCHES = ("tune", "evolve", "greedy")  # keys of a row that is chosen by its score on dev items
Align = Literal["weights", "rotations", "activations", "activation-rotations", "transport"]
_PARAMETER_SPACE = ("granularity", "kinds")
_DATA_FLOW = ("repeats", "max_depth", "embedding_from", "scales")


class Evolve(Entry):
    """An evolutionary search; options of `python -m search evolve`."""

    space: Literal["parameter", "data-flow"] | None = Field(
        None, description="Whether coefficients or the order of layers are searched."
    )
    budget: Count = Field(description="Dev evaluations in all.")
    seconds: Positive | None = Field(
        None, description="No candidate is begun after so many seconds in all."
    )
    algorithm: Literal["cma-es", "nsga2", "map", "m2n2", "merge3"] | None = Field(
        None,
        description="What proposes candidates; see "
        "[evolutionary.md](evolutionary.md#more-than-one-goal).",
    )
    population: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Candidates in a generation."
    )
    sigma: Positive | None = Field(None, description="First step size, in units of the genes.")
    fitness_items: Count | None = Field(
        None, description="Dev items of each task that score a candidate; all if absent."
    )
    rescored: Annotated[int, Field(ge=2)] | None = Field(
        None, description="With `fitness_items`: candidates that are scored on all items last."
    )
    granularity: Count | None = Field(None, description="Parameter space: layers in a group.")
    kinds: Literal["together", "separate"] | None = Field(
        None, description="Parameter space: whether attention, MLP and norms share their genes."
    )
    repeats: Count | None = Field(
        None, description="Data-flow space: how often the experts' layers may follow each other."
    )
    max_depth: Count | None = Field(
        None, description="Data-flow space: most layers of a candidate."
    )
    embedding_from: Name | None = Field(
        None, description="Data-flow space: the expert whose embedding and head are used."
    )
    scales: Literal["network", "matrix", "none"] | None = Field(
        None, description="Data-flow space: where the factors between layers come from."
    )

    def check(self, row: Row, where: str) -> None:
        """Refuse what does not fit the space or the row's method; see `Row.check`."""
        data_flow = self.space == "data-flow"
        if data_flow and (row.method != "linear" or row.set):
            raise UserError(
                f"{where}: a search in data-flow space orders layers; its method is linear, "
                "and there is nothing under 'set'"
            )
        if data_flow and self.algorithm in PARAMETER_SPACE_ONLY:
            raise UserError(
                f"{where}: algorithm {self.algorithm} searches the parameter space; leave "
                "evolve.space out, or take cma-es or nsga2"
            )
        for name in _PARAMETER_SPACE if data_flow else _DATA_FLOW:
            if getattr(self, name) is not None:
                raise UserError(
                    f"{where}: evolve.{name} belongs to the "
                    f"{'parameter' if data_flow else 'data-flow'} space; leave it out or set "
                    "evolve.space"
                )
        if not data_flow:
            try:
                check_method(row.merge_method, registry.validate(row.merge_method, row.set))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        if self.population is not None and self.population > self.budget:
            raise UserError(
                f"{where}: a population of {self.population} does not fit into a budget of "
                f"{self.budget} evaluations; give a smaller one, or none"
            )


class Row(Entry):
    """A row of the tables: a merge by a method of `python -m merges --list`, or a published one."""

    label: str = Field(description="Name in tables and figures.")
    method: str | None = Field(None, description="The merge method.")
    hub: Name | None = Field(
        None, description="A published merge that is fetched: its name in the table `hub.table`."
    )
    backend: Backend | None = Field(
        None, description="What evaluates it, if not `evaluation.backend`."
    )
    set: Parameters = Field({}, description="Parameters of the method; the others have defaults.")
    tune: Some[Annotated[Parameters, Field(min_length=1)]] | None = Field(
        None, description="Candidates, of which the best on dev items is chosen."
    )
    evolve: Evolve | None = Field(
        None, description="An evolution strategy that searches on dev items."
    )
    greedy: Literal[True] | None = Field(
        None, description="A greedy soup: an expert is added if the dev average does not drop."
    )
    cases: Some[Name] | None = Field(None, description="Cases that have the row; all if absent.")
    experts: Some[Name] | None = Field(
        None,
        description="Experts that are merged; all of the case if absent. For a method that works "
        "on merged models: another row.",
    )
    align: Align | None = Field(
        None,
        description="How the experts are brought to the basis of the base first; see "
        "[merging.md](merging.md#models-without-a-common-base).",
    )
    embeddings_and_norms: Embeddings = Field(
        "merged", description="Whether embeddings and norms are merged or the base's."
    )
    best_of: bool = Field(True, description="Whether the row is compared when the best is marked.")
    table: Literal["main", "more"] = Field(
        "main", description="The case's main table, or its table of further methods."
    )

    @property
    def search(self) -> str | None:
        """The one of `SEARCHES` by which the row is chosen, None for a fixed merge."""
        return next((kind for kind in SEARCHES if getattr(self, kind) is not None), None)

    @property
    def merge_method(self) -> str:
        """The merge method of a row that is made here."""
        assert self.method is not None, "a published merge has no method"
        return self.method

    @property
    def learns(self) -> bool:
        """Whether the merge learns from calibration data."""
        return self.method is not None and "data" in registry.info(self.method).needs

    @property
    def statistics(self) -> Mapping[str, str]:
        """The models whose statistics the merge wants, each with their kind."""
        return {} if self.method is None else registry.info(self.method).statistics

    def evaluations(self, experts: int) -> int:
        """Return how many dev evaluations a search takes at most, with so many experts."""
        return self.evolve.budget if self.evolve else len(self.tune or ()) or 2 * experts

    def is_in(self, case: str) -> bool:
        """Say whether a case has the row."""
        return self.cases is None or case in self.cases

    def experts_of(self, experts: Iterable[str]) -> list[str]:
        """Return the row's experts: its own choice, else all of its case, which are given."""
        return list(self.experts or experts)

    def check(self, where: str) -> None:
        """Refuse what does not fit together within the row; see `hub.check`."""
        if (self.hub is None) == (self.method is None):
            raise UserError(
                f"{where} needs either a method or, of a published merge, its hub reference"
            )
        if self.method is None:
            if self.align:
                raise UserError(f"{where}: a published merge is made already; leave 'align' out")
            return
        known(self.method, registry.describe(), where, "method")
        searches = [kind for kind in SEARCHES if getattr(self, kind) is not None]
        if len(searches) > 1:
            raise UserError(f"{where} has both {searches[0]!r} and {searches[1]!r}; keep one")
        if self.greedy and (self.method != "linear" or self.set):
            raise UserError(
                f"{where}: 'greedy' is a uniform soup; its method is linear, and there is "
                "nothing under 'set'"
            )
        if self.align and self.statistics:
            raise UserError(
                f"{where}: statistics are of the experts as they were trained; leave 'align' out, "
                "or take a method without statistics"
            )
        if self.evolve:
            self.evolve.check(self, where)


def check_experts(method: str, resolved: Mapping[str, Any], experts: list[str], where: str) -> None:
    """Refuse a number of experts that a method does not take, or numbers for other experts.

    Args:
        method: A method of the registry.
        resolved: Its parameters.
        experts: The experts that it merges.
        where: The place in the configuration, for the message of a `UserError`.
    """
    about = registry.info(method)
    if about.experts is not None and len(experts) != about.experts:
        raise UserError(
            f"{where}: method {method} merges {about.experts} experts, not {len(experts)}; "
            "choose them under 'experts'"
        )
    for name, value in resolved.items():
        if not about.parameters[name].kind.per_expert or value is None:
            continue
        if isinstance(value, list) and len(value) != len(experts):
            raise UserError(f"{where}: {name} has {len(value)} numbers for {len(experts)} experts")
        if isinstance(value, dict) and set(value) != set(experts):
            odd = sorted(set(value) ^ set(experts))[0]
            raise UserError(f"{where}: {name} must name each expert once{nearest(odd, experts)}")
