"""What matters in DAM: the worlds that the study adds, and the settings it compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from common.errors import UserError
from common.worlds import folder_of
from merges.engine import registry
from studies.study import Study
from workflow.config.cases import World
from workflow.config.entry import (
    Count,
    Distinct,
    Embeddings,
    Entry,
    Name,
    Parameters,
    Positive,
    Seed,
    Some,
    known,
)
from workflow.config.experiment import Experiment
from workflow.config.methods import Row


def world_of(case: str, seed: int, own: Sequence[int]) -> str:
    """Name the world of a case that a seed makes; the experiment's `own` seeds have theirs."""
    return folder_of(case, seed, own) if seed in own else f"studies/dam/{case}_seed{seed}"


class Setting(Entry):
    """One way to merge, tuned over learning rates in each world."""

    label: str = Field(description="Name in tables and figures.")
    method: str = Field("dam", description="The merge method.")
    set: Parameters = Field({}, description="Parameters of the method, over the study's.")
    learning_rates: Some[Positive] | None = Field(
        None, description="Its own learning rates, in place of the study's."
    )
    embeddings_and_norms: Embeddings = Field(
        "base", description="Whether embeddings and norms are merged or the base's."
    )
    experts: Some[Name] | None = Field(
        None, description="Experts that are merged; all of the case if absent."
    )
    expert_embeddings: Literal["frozen", "trained"] = Field(
        "frozen", description="Whether the experts' embeddings were trained too."
    )
    data: Literal["own", "swapped", "mixed"] = Field(
        "own", description="Whose calibration rows a teacher sees."
    )


class Comparison(Entry):
    """A part of the study's table: settings next to a reference."""

    title: str = Field(description="Title of the part.")
    reference: Name = Field(description="The setting that the others are compared with.")
    settings: Some[Name] = Field(description="The other settings.")
    notes: list[str] = Field([], description="Sentences under the part.")
    figure: Literal["samples", "bars"] | None = Field(None, description="Its figure, if any.")


class Dam(Study):
    """Settings of DAM compared over worlds: a case's data, base and experts from several seeds."""

    case: Name = Field(description="The case.")
    seeds: Distinct[Seed] = Field(description="Seeds of the worlds.")
    learning_rates: Some[Positive] = Field(
        description="Learning rates over which each setting is tuned."
    )
    embedding_learning_rate: Positive = Field(
        3.0e-4, description="For experts whose embeddings are trained too."
    )
    resamples: Count = Field(10000, description="Resamples of the bootstrap and permutation test.")
    set: Parameters = Field({}, description="Parameters of all settings without a preset.")
    settings: Annotated[dict[Name, Setting], Field(min_length=1)] = Field(
        description="The settings, by name."
    )
    comparisons: Annotated[dict[Name, Comparison], Field(min_length=1)] = Field(
        description="What is compared, by name."
    )

    def worlds(self, experiment: Experiment) -> dict[str, World]:
        """Return the case from the study's other seeds; see `Study.worlds`."""
        case, own = experiment.cases[self.case], experiment.world_seeds
        return {
            world_of(self.case, seed, own): World.repeat(case, self.case, seed)
            for seed in self.seeds
            if seed not in own
        }

    def candidates_of(self, setting: str) -> list[dict[str, Any]]:
        """List what a setting is tuned over: its learning rates, or nothing but itself."""
        entry = self.settings[setting]
        rates = entry.learning_rates or (self.learning_rates if entry.method == "dam" else [])
        return [{"learning_rate": rate} for rate in rates] or [{}]

    def row_of(self, setting: str) -> Row:
        """Return a setting as a method row, tuned over its candidates."""
        entry = self.settings[setting]
        return Row.model_construct(
            label=entry.label,
            method=entry.method,
            set=self.set_of(setting),
            tune=self.candidates_of(setting),
            experts=entry.experts,
            embeddings_and_norms=entry.embeddings_and_norms,
        )

    def set_of(self, setting: str) -> dict[str, Any]:
        """Return a setting's fixed parameters: the study's with its own over them.

        A setting that names a preset takes nothing from the study, since what is given in
        addition to a preset overrides it.
        """
        entry = self.settings[setting]
        shared = {} if entry.method != "dam" or "preset" in entry.set else self.set
        return {**shared, **entry.set}

    def check(self, experiment: Experiment) -> None:
        """Refuse unknown names, and settings that are tuned unequally; see `Study.check`."""
        known(self.case, experiment.cases, "studies.dam.case", "case")
        for name in self.settings:
            self._check_setting(experiment, name, f"studies.dam.settings.{name}")
        for name, comparison in self.comparisons.items():
            where = f"studies.dam.comparisons.{name}"
            for setting in (comparison.reference, *comparison.settings):
                known(setting, self.settings, where, "setting")
            if comparison.reference in comparison.settings:
                raise UserError(
                    f"{where}: the reference {comparison.reference!r} is compared with itself; "
                    "name it once"
                )

    def _check_setting(self, experiment: Experiment, name: str, where: str) -> None:
        entry = self.settings[name]
        known(entry.method, registry.describe(), where, "method")
        experts = experiment.cases[self.case].experts
        for expert in entry.experts or ():
            known(expert, experts, where, "expert", self.case)
        candidates, shared = self.candidates_of(name), len(self.learning_rates)
        if len(candidates) not in (1, shared):
            raise UserError(
                f"{where}: {len(candidates)} learning rates; give one, or {shared} as in "
                "studies.dam.learning_rates, so that all are tuned alike"
            )
        for candidate in candidates:
            experiment.resolve(entry.method, {**self.set_of(name), **candidate}, where)
