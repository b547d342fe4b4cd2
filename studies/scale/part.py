"""A part of the study: one seed and one size, from its bases to the scores of all merges."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bottle.training import Recipe, Shape, build_model, fit
from checkpoints.likeness import over_pairs
from common import sources
from common.errors import UserError, nearest
from common.files import write_json
from common.progress import Progress
from studies.scale import lens
from studies.scale.dam import dam
from studies.scale.keeping import Kept
from studies.scale.merging import by_engine, merged_scores, text_measures, weight_measures
from studies.scale.scoring import Scorer
from studies.scale.settings import Scale, code_of, subsets_of
from studies.scale.skills import BASE, MULTITASK, SKILLS, mixtures
from studies.scale.world import World, make_world

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_ARCHITECTURE = "mistral"
# About how many training steps of a batch other steps take, for the time left: scores or measures
# of all models of a base, and all merges of a set, for each expert in it.
_LOOK, _MERGE = 30, 20


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


class Part:
    """Everything of one seed and one size; each step is kept as a file once it is done.

    Args:
        study: The settings.
        size: Name of the size.
        seed: The seed.
        folder: Where steps are kept until the part is complete.
        code: Hash of the code, which is part of the steps' key.
    """

    def __init__(self, study: Scale, size: str, seed: int, folder: Path, code: str) -> None:
        self.study, self.size, self.seed = study, size, seed
        key = {"settings": study.settings_of(size), "size": size, "seed": seed, "code": code}
        self.kept = Kept(folder, key)
        rows = study.rows_of(mixtures())
        counts = study.items.model_dump()
        self.world: World = make_world(seed, rows, study.calibration_rows, counts)
        self._model, copy = self._build(), self._build()
        self._dev = Scorer(copy, self.world.items["dev"])
        self._test = Scorer(copy, self.world.items["test"])

    def _build(self) -> PreTrainedModel:
        own = self.study.sizes[self.size]
        shape = Shape(
            _ARCHITECTURE,
            own.hidden_size,
            self.study.layers,
            own.heads,
            own.kv_heads,
            own.intermediate_size,
        )
        return build_model(shape, self.world.vocabulary, self.seed)

    def _recipe(self, role: str) -> Recipe:
        study, size = self.study, self.study.sizes[self.size]
        train = {BASE: study.base, MULTITASK: study.multitask}.get(role, study.experts)
        # Rates of linear layers follow the size's. Embeddings have one rate at every width, as in
        # Yang et al., arXiv:2203.03466.
        factor = size.learning_rate / study.base.learning_rate
        return Recipe(
            steps=train.steps,
            learning_rate=train.learning_rate * factor,
            embedding_learning_rate=train.embedding_learning_rate or 0.0,
            prompt_weight=train.prompt_weight or 0.0,
            weight_decay=train.weight_decay or 0.0,
            batch_size=train.batch_size or 32,
            base_decay=train.base_decay or 0.0,
        )

    def _order(self, role: str) -> int:
        return random.Random(f"scale {role} {self.seed}").getrandbits(32)

    def _what(self, role: str) -> str:
        return f"seed {self.seed}, {self.size}: {role}"

    def _train_bases(self) -> None:
        """Train the base once; weaker ones are the same training at earlier steps."""
        recipe = self._recipe(BASE)
        at = {max(1, round(share * recipe.steps)): q for q, share in self.study.qualities.items()}

        def watch(step: int) -> None:
            if step in at:
                self.kept.keep(f"{at[step]}-{BASE}", _weights(self._model))

        self._model.load_state_dict(self._build().state_dict())
        texts = self.world.train[BASE]
        fit(self._model, texts, recipe, self._order(BASE), self._what(BASE), watch=watch)

    def _train(self, quality: str, role: str) -> None:
        self._model.load_state_dict(self.kept.model(f"{quality}-{BASE}"))
        recipe, what = self._recipe(role), self._what(f"{quality} {role}")
        fit(self._model, self.world.train[role], recipe, self._order(role), what)
        self.kept.keep(f"{quality}-{role}", _weights(self._model))

    def _models(self, quality: str) -> dict[str, Any]:
        """Score base, experts and the multitask model."""
        return {
            role: {
                task: asdict(score)
                for task, score in self._test.scores(self.kept.model(f"{quality}-{role}")).items()
            }
            for role in (BASE, *SKILLS, MULTITASK)
        }

    def _experts(self, quality: str) -> dict[str, dict[str, Tensor]]:
        return {skill: self.kept.model(f"{quality}-{skill}") for skill in SKILLS}

    def _measures(self, quality: str) -> dict[str, Any]:
        """Measure every two experts."""
        base, experts = self.kept.model(f"{quality}-{BASE}"), self._experts(quality)
        found = weight_measures(base, experts) | text_measures(experts, base, self._dev)
        own = lens.pairs(self._model.config, base, experts)
        found |= {} if own is None else {lens.NAME: own}
        return {
            name: [[None if np.isnan(v) else float(v) for v in row] for row in values]
            for name, values in found.items()
        }

    def _merges(self, quality: str, members: tuple[str, ...]) -> list[dict[str, Any]]:
        """Merge a set of experts by every method."""
        base, every = self.kept.model(f"{quality}-{BASE}"), self._experts(quality)
        experts, found = {skill: every[skill] for skill in members}, []
        for name, tried in self.study.methods.items():
            start = time.process_time()
            made = merged_scores(
                tried, self._merging(tried.method, base, experts), members, self._dev, self._test
            )
            spent = round(time.process_time() - start, 3)
            found.append({"method": name, "members": list(members), **made, "cpu_s": spent})
        return found

    def _merging(
        self, method: str, base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]
    ) -> Callable[[Mapping[str, Any]], Mapping[str, Tensor]]:
        """Return what merges with given parameters of a method."""
        if method != "dam":
            return by_engine(method, base, experts, self.seed)
        rows = {skill: self.world.calibration[skill] for skill in experts}
        config = self._model.config.to_dict()
        return lambda given: dam(config, base, experts, rows, given, self.seed)

    def _steps(self) -> list[tuple[str, float, Callable[[], object]]]:
        """List the steps in order: a name, its work in training steps of a batch, what does it."""
        study = self.study
        best = max(study.qualities, key=lambda quality: study.qualities[quality])
        steps: list[tuple[str, float, Callable[[], object]]] = [
            (f"{best}-{BASE}", study.base.steps, self._train_bases)
        ]
        for quality in study.qualities:
            for role in (*SKILLS, MULTITASK):
                work = self._recipe(role).steps
                steps.append((f"{quality}-{role}", work, partial(self._train, quality, role)))
            for name, make in (("scores", self._models), ("measures", self._measures)):
                own = f"{quality}-{name}"
                step = partial(self.kept.value, own, partial(make, quality))
                steps.append((own, _LOOK, step))
            for members in self.sets:
                own = _set_name(quality, members)
                step = partial(self.kept.value, own, partial(self._merges, quality, members))
                steps.append((own, _MERGE * len(members), step))
        return steps

    @property
    def sets(self) -> list[tuple[str, ...]]:
        """The sets of experts that are merged."""
        found = []
        for count in self.study.counts:
            found += subsets_of(list(SKILLS), count, self.study.subsets, self.seed)
        return found

    def run(self) -> dict[str, Any]:
        """Do what is not done yet, and return the part's record."""
        # Only what is left counts, so that the time left is right after a kill too.
        left = [step for step in self._steps() if not self.kept.has(step[0])]
        progress = Progress(round(sum(work for _, work, _ in left)), self._what("all"))
        start = time.process_time()
        for name, work, do in left:
            do()
            progress.step(round(work), name)
            self.kept.spend(time.process_time() - start)
            start = time.process_time()
        cells = {}
        for quality in self.study.qualities:
            measures = self.kept.value(f"{quality}-measures", dict)
            cells[quality] = {
                "models": self.kept.value(f"{quality}-scores", dict),
                "merges": [
                    merge
                    for members in self.sets
                    for merge in self.kept.value(_set_name(quality, members), list)
                ],
                "sets": [
                    {"members": list(members), "measures": _of_set(measures, members)}
                    for members in self.sets
                ],
            }
        return {
            "seed": self.seed,
            "size": self.size,
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "cells": cells,
            "cpu_s": round(self.kept.spent(), 1),
        }


def _set_name(quality: str, members: tuple[str, ...]) -> str:
    return f"{quality}-{'+'.join(members)}"


def _of_set(measures: Mapping[str, Any], members: tuple[str, ...]) -> dict[str, float | None]:
    """Return each measure's mean over every two members."""
    places = [list(SKILLS).index(skill) for skill in members]
    found = {}
    for name, values in measures.items():
        mean = over_pairs(np.array(values, dtype=float), places)
        found[name] = None if np.isnan(mean) else mean
    return found


def make(config: Mapping[str, Any], part: str, out: Path) -> None:
    """Make a part, or finish one that was stopped.

    Args:
        config: The resolved configuration.
        part: Its name, such as ``w128-seed1``.
        out: The part's file; steps are kept in a folder of its name until it is written.

    Raises:
        UserError: There is no such part; a training's loss or a merge is not finite.
    """
    study = Scale.model_validate(config["studies"]["scale"])
    parts = {f"{size}-seed{seed}": (size, seed) for size in study.sizes for seed in study.seeds}
    if part not in parts:
        raise UserError(f"studies.scale: no part {part!r}{nearest(part, parts)}; correct --part")
    made = Part(study, *parts[part], out.with_suffix(""), sources.version(code_of(study)))
    write_json(out, made.run())
    made.kept.remove()
