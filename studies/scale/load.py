"""Reads the parts of the study: every merge with its scores, relative to its experts'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from studies.scale.skills import BASE, HELD_OUT, SKILLS

_LEARNED = 2.0  # standard errors by which an expert must beat its base for its skill to count
Scores = Mapping[str, Mapping[str, float]]  # by task: exact, tokens, loss, items


@dataclass(frozen=True)
class Origin:
    """What models were made from.

    Attributes:
        seed: The world's seed.
        size: Name of the size.
        parameters: Number of parameters.
        quality: Name of the base's quality.
    """

    seed: int
    size: str
    parameters: int
    quality: str


@dataclass(frozen=True)
class Merge(Origin):
    """A merge, or a reference model in the same terms.

    Attributes:
        members: The experts.
        method: Name of the method; empty for a reference.
        held_in: Mean over the members' skills of the score, divided by the expert's; None where no
            member learned its skill.
        gain: The same of (score - base) / (expert - base).
        held_out: Mean score of the tasks in no skill, not divided: a base near 0 would inflate it.
        loss: Mean cross-entropy over the tasks of all eight skills, nats a token.
        tasks: Score of each task in no skill.
    """

    members: tuple[str, ...]
    method: str
    held_in: float | None
    gain: float | None
    held_out: float
    loss: float
    tasks: Mapping[str, float]

    @property
    def count(self) -> int:
        """The number of experts."""
        return len(self.members)


@dataclass(frozen=True)
class Cell(Origin):
    """All models of one seed, size and quality.

    Attributes:
        models: Scores of base, experts and the multitask model, by role.
        learned: The skills whose expert beats the base clearly.
        merges: All merges.
        measures: By set of experts, each measure's mean over its pairs.
    """

    models: Mapping[str, Scores]
    learned: frozenset[str]
    merges: Sequence[Merge]
    measures: Mapping[tuple[str, ...], Mapping[str, float | None]]

    @property
    def world(self) -> str:
        """Names the cell: its models share a base with no other's."""
        return f"{self.size} {self.quality} seed {self.seed}"

    def reference(self, role: str) -> Merge:
        """Return base or multitask model in a merge's terms, of all skills."""
        return _merge(self, tuple(SKILLS), "", self.models[role])


@dataclass(frozen=True)
class Study:
    """All parts that have been run."""

    config: Mapping[str, Any]  # the block `studies.scale` of the resolved configuration
    cells: Sequence[Cell]
    files: Mapping[str, Path]
    cpu_s: float

    @property
    def merges(self) -> list[Merge]:
        """All merges of all cells."""
        return [merge for cell in self.cells for merge in cell.merges]

    @property
    def seeds(self) -> list[int]:
        """The seeds that have been run."""
        return sorted({cell.seed for cell in self.cells})

    @property
    def sizes(self) -> dict[str, int]:
        """Number of parameters by size, smallest first; of the first seed, others differ little."""
        found: dict[str, int] = {}
        for cell in self.cells:
            found.setdefault(cell.size, cell.parameters)
        return dict(sorted(found.items(), key=lambda item: item[1]))


def skill_score(scores: Scores, skill: str) -> float:
    """Return the mean share of exact answers over a skill's tasks."""
    tasks = SKILLS[skill].tasks
    return math.fsum(scores[task]["exact"] for task in tasks) / len(tasks)


def _variance(scores: Scores, skill: str) -> float:
    """Return the squared standard error of a skill's score; never that of no doubt."""
    total, tasks = 0.0, SKILLS[skill].tasks
    for task in tasks:
        items = scores[task]["items"]
        share = min(max(scores[task]["exact"], 0.5 / items), 1 - 0.5 / items)
        total += share * (1 - share) / items
    return total / len(tasks) ** 2


def held_out_score(scores: Scores) -> float:
    """Return the mean share of exact answers over the held-out tasks."""
    return math.fsum(scores[task]["exact"] for task in HELD_OUT) / len(HELD_OUT)


def learned(models: Mapping[str, Scores]) -> frozenset[str]:
    """Return the skills whose expert beats the base by two standard errors."""
    found = set()
    for skill in SKILLS:
        lead = skill_score(models[skill], skill) - skill_score(models[BASE], skill)
        error = math.sqrt(_variance(models[skill], skill) + _variance(models[BASE], skill))
        if lead > _LEARNED * error:
            found.add(skill)
    return frozenset(found)


def _merge(cell: Cell, members: tuple[str, ...], method: str, scores: Scores) -> Merge:
    ratios, gains = [], []
    for skill in members:
        if skill in cell.learned:
            own, base = (
                skill_score(cell.models[skill], skill),
                skill_score(cell.models[BASE], skill),
            )
            now = skill_score(scores, skill)
            ratios.append(now / own)
            gains.append((now - base) / (own - base))
    tasks = [task for skill in SKILLS.values() for task in skill.tasks]
    return Merge(
        seed=cell.seed,
        size=cell.size,
        parameters=cell.parameters,
        quality=cell.quality,
        members=members,
        method=method,
        held_in=math.fsum(ratios) / len(ratios) if ratios else None,
        gain=math.fsum(gains) / len(gains) if gains else None,
        held_out=held_out_score(scores),
        loss=math.fsum(scores[task]["loss"] for task in tasks) / len(tasks),
        tasks={task: scores[task]["exact"] for task in HELD_OUT},
    )


def cells_of(part: Mapping[str, Any]) -> list[Cell]:
    """Turn a part's record into cells, one for each quality."""
    found = []
    for quality, content in part["cells"].items():
        models = content["models"]
        merges: list[Merge] = []
        measures = {tuple(own["members"]): own["measures"] for own in content["sets"]}
        cell = Cell(
            part["seed"],
            part["size"],
            part["parameters"],
            quality,
            models,
            learned(models),
            merges,
            measures,
        )
        for own in content["merges"]:
            merges.append(_merge(cell, tuple(own["members"]), own["method"], own["scores"]))
        found.append(cell)
    return found


def load(config: Mapping[str, Any], results: Path) -> Study:
    """Read the parts that have been run.

    Args:
        config: The resolved configuration.
        results: The results folder.

    Raises:
        UserError: None has been run, or one is not what a part writes.
    """
    entry = config["studies"]["scale"]
    folder = results / "studies" / "scale" / "parts"
    cells: list[Cell] = []
    files, spent = {}, 0.0
    for seed in entry["seeds"]:
        for size in entry["sizes"]:
            path = folder / f"{size}-seed{seed}.json"
            if path.exists():
                part = read_json(path)
                try:
                    cells += cells_of(part)
                    spent += part["cpu_s"]
                except (KeyError, TypeError):
                    raise UserError(
                        f"{path}: is no part of the study of scale; remove it and run the study "
                        "again"
                    ) from None
                files[path.name] = path
    if not cells:
        raise UserError(f"{folder}: no part has been run; run python -m workflow study scale first")
    return Study(entry, cells, files, spent)
