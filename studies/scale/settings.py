"""The study of scale: its sizes, numbers of experts, base qualities and methods."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from common.errors import UserError
from merges.engine import registry
from studies.study import Study
from workflow.config.cases import Train
from workflow.config.entry import (
    Count,
    Distinct,
    Entry,
    Name,
    Parameters,
    Positive,
    Seed,
    Some,
    known,
)
from workflow.config.experiment import Experiment

SKILLS = 8  # of the study's world; `studies.scale.skills` has them


class Size(Entry):
    """The width of a model, and the rate at which its base learns."""

    hidden_size: Annotated[int, Field(ge=16)] = Field(description="Width of the hidden states.")
    heads: Count = Field(description="Number of attention heads.")
    kv_heads: Count = Field(description="Number of heads of keys and values.")
    intermediate_size: Count = Field(description="Width of the MLP.")
    learning_rate: Positive = Field(
        description="Peak learning rate of the base; experts have their share of it."
    )


class Tried(Entry):
    """A merge method of the sweep."""

    label: str = Field(description="Name in tables and figures.")
    method: str = Field(description="The merge method.")
    set: Parameters = Field({}, description="Fixed parameters of the method.")
    tune: Some[Parameters] | None = Field(
        None, description="Parameters of which the best on dev items is taken."
    )

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The settings that are tried: those of `tune`, each with `set`."""
        return [{**self.set, **tried} for tried in self.tune or [{}]]


class Items(Entry):
    """How many items of each task."""

    dev: Count = Field(description="Items that guide tuning.")
    test: Count = Field(description="Items that are scored.")


class Unseen(Entry):
    """What the fit of the scaling law does not see, and is to predict."""

    size: Name = Field(description="The size.")
    count: Count = Field(description="The number of experts.")


class Scale(Study):
    """Merges over model size, number of experts, quality of the base, and method."""

    seeds: Distinct[Seed] = Field(description="Seeds of the worlds.")
    layers: Count = Field(description="Layers of every model.")
    sizes: Annotated[dict[Name, Size], Field(min_length=1)] = Field(
        description="The sizes, smallest first."
    )
    counts: Distinct[Annotated[int, Field(ge=2, le=SKILLS)]] = Field(
        description="Numbers of experts that are merged."
    )
    subsets: Count = Field(
        description="Sets of experts of each number, as far as there are so many."
    )
    qualities: Annotated[dict[Name, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = (
        Field(description="Bases, weakest first: the share of the base's steps that each had.")
    )
    base: Train = Field(description="How bases are trained; each size has its own learning rate.")
    experts: Train = Field(
        description="How experts are trained; the learning rate is a share of their base's."
    )
    multitask: Train = Field(description="How the one model of all skills is trained; as experts.")
    items: Items = Field(description="Items of each task.")
    calibration_rows: Count = Field(description="Rows of each expert that DAM draws from.")
    methods: Annotated[dict[Name, Tried], Field(min_length=1)] = Field(description="The methods.")
    unseen: Unseen = Field(description="What the scaling law is to predict.")

    def rows_of(self, roles: Mapping[str, Any]) -> dict[str, int]:
        """Return how many training rows each role has: one for each text of a step."""
        trains = {"base": self.base, "multitask": self.multitask}
        rows = {}
        for role in roles:
            train = trains.get(role, self.experts)
            rows[role] = train.steps * (train.batch_size or 32)
        return rows

    def settings_of(self, size: str) -> dict[str, Any]:
        """Return all settings that a part of this size depends on, as JSON has them."""
        own = self.model_dump(mode="json", exclude={"seeds", "sizes", "unseen"})
        return own | {"size": self.sizes[size].model_dump(mode="json")}

    def check(self, experiment: Experiment) -> None:
        """Refuse unknown names, and settings that no merge method takes; see `Study.check`."""
        where = "studies.scale"
        known(self.unseen.size, self.sizes, f"{where}.unseen.size", "size")
        known(str(self.unseen.count), map(str, self.counts), f"{where}.unseen.count", "number")
        if max(self.qualities.values()) != 1:
            raise UserError(f"{where}.qualities: none is 1; give the best base all of its steps")
        for name, size in self.sizes.items():
            if size.hidden_size % size.heads or size.heads % size.kv_heads:
                raise UserError(
                    f"{where}.sizes.{name}: hidden size {size.hidden_size}, {size.heads} heads and "
                    f"{size.kv_heads} key-value heads do not divide; make each a multiple of the "
                    "next"
                )
        for name, tried in self.methods.items():
            place = f"{where}.methods.{name}"
            known(tried.method, registry.describe(), place, "method")
            if tried.method == "dam" and tried.tune:
                raise UserError(f"{place}: DAM is trained once for each set; give set, not tune")
            if registry.info(tried.method).whole_model and tried.method != "dam":
                raise UserError(
                    f"{place}: of methods that need data, the study knows DAM alone; give another"
                )
            for candidate in tried.candidates:
                self._check_candidate(tried.method, candidate, place)

    def _check_candidate(self, method: str, candidate: dict[str, Any], place: str) -> None:
        try:
            samples = registry.validate(method, candidate).get("samples", 0)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if samples > self.calibration_rows:
            raise UserError(
                f"{place}: {samples} samples per expert, but studies.scale.calibration_rows makes "
                f"only {self.calibration_rows}"
            )


def code_of(study: Scale) -> tuple[str, ...]:
    """Return the entry points of a part's code, those of its merge methods among them."""
    methods = sorted({tried.method for tried in study.methods.values()})
    named = [path for method in methods for path in registry.sources(method)]
    return tuple(dict.fromkeys(["studies/scale/part.py", *named]))


def subsets_of(skills: list[str], count: int, most: int, seed: int) -> list[tuple[str, ...]]:
    """Draw sets of skills, in which each skill is about equally often.

    Args:
        skills: The names.
        count: Skills in a set.
        most: Number of sets; all there are where these are fewer.
        seed: Of the draw.
    """
    every = list(itertools.combinations(skills, count))
    random.Random(f"scale {seed} {count}").shuffle(every)
    chosen: list[tuple[str, ...]] = []
    used = dict.fromkeys(skills, 0)
    while every and len(chosen) < most:
        # The set whose skills were drawn least often; of equal ones the first in the random order.
        best = min(every, key=lambda found: sum(used[skill] for skill in found))
        every.remove(best)
        chosen.append(best)
        for skill in best:
            used[skill] += 1
    return chosen
