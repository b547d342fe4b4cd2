"""Where a number comes from: its parts, its files, and the steps that made them."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import sha256_file
from common.manifest import NAME, beside, fingerprint, has_fingerprint
from report.averages import Score, spread
from report.case_table import has_groups
from report.experiment import Ablation, Case, Experiment, Model
from report.reading import COST, MANIFEST, Reader

AGAIN = "again"  # folder of the scores that a cell's command makes
UNKNOWN = "not recorded"
_LONGEST = 120  # characters of a parameter that is shown; a longer one is read in its manifest
_ABOUT = MANIFEST | {"kind": str, "versions": {}, "numerics": {}}
_MADE = ("data", "models/*", "teachers", "statistics/*/*", "merges/*")  # in the order of the work
_MODELS = ("base", "experts", "model", "parents", "weights")  # how inputs that are models begin


@dataclass(frozen=True)
class Run:
    """A row's model in one world, or one run of the ablation; paths are below the results."""

    model: Model
    seed: int | None  # of the world or the run, None where there is one world
    folder: str  # of the model
    scores: str  # its score file
    data: str  # the folder of the items that it answered

    @property
    def items(self) -> str:
        """The file of its answers."""
        return f"{self.scores.removesuffix('.json')}.items.jsonl.gz"


@dataclass(frozen=True)
class Line:
    """A row of a table of scores."""

    id: str
    label: str
    runs: tuple[Run, ...]
    scores: Mapping[str, Score]  # by column


@dataclass(frozen=True)
class Table:
    """A table of scores.

    Attributes:
        name: The name of its files.
        errors: What the number after ± is.
        columns: By title, the tasks behind it, the ones of a column of the average together.
        lines: Its rows by label.
        seeds: By title, the seed of a column that shows one run alone.
    """

    name: str
    errors: str
    columns: Mapping[str, tuple[tuple[str, ...], ...]]
    lines: Mapping[str, Line]
    seeds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a manifest says of an artefact; paths are below the results."""

    path: str
    about: Mapping[str, Any]  # the manifest
    sha256: str  # of the manifest
    inputs: tuple[tuple[str, str, str], ...]  # name, hash, and path where there is such an artefact
    command: str
    commit: str

    @property
    def recipe(self) -> list[str]:
        """The resolved parameters, as ``name = value``."""
        return list(_flat(self.about.get("parameters", {})))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{above}{name} = {text if len(text) <= _LONGEST else '(in its manifest)'}"


def _line(case: Case, model: Model, columns: Mapping[str, tuple[tuple[str, ...], ...]]) -> Line:
    kind = "merges" if model.kind == "merge" else "models"
    runs = []
    for seed, one in model.each.items():
        world = case.each[seed].id
        places = f"{world}/{kind}/{one.id}", f"{world}/scores/test/{one.id}.json"
        runs.append(Run(one, seed, *places, f"{world}/data"))
    scores = {"Avg": case.average(model)}
    scores |= {column.label: model.column(column) for column in case.columns}
    scores |= {case.task_label(task): model.tasks.get(task) for task in case.tasks}
    known = {title: score for title in columns if (score := scores.get(title))}
    return Line(model.id, model.label, tuple(runs), known)


def _case_tables(case: Case) -> Iterator[Table]:
    columns: dict[str, tuple[tuple[str, ...], ...]]
    columns = {column.label: (column.tasks,) for column in case.columns}
    average = {"Avg": tuple(column.tasks for column in case.averaged)}
    shown = [(case.table, case.models, columns | average)]
    if case.more:
        parents = tuple(model for model in case.models if model.kind != "merge")
        shown.append((f"{case.table}_more", parents + case.more, columns | average))
    if has_groups(case):
        columns = {case.task_label(task): ((task,),) for task in case.tasks}
        shown.append((f"{case.table}_tasks", case.models, columns))
    for name, models, titles in shown:
        lines = {model.label: _line(case, model, titles) for model in models}
        yield Table(name, f"standard error over {case.errors}", titles, lines)


def _ablation_table(ablation: Ablation) -> Table:
    case = ablation.case
    seeds = {f"Seed {seed}": seed for seed in ablation.seeds}
    lines = {}
    for entry in ablation.objectives:
        averages = [case.average(run) for run in entry.runs]
        scores = {
            title: score for title, score in zip(seeds, averages, strict=True) if score is not None
        }
        if total := spread([score and score.value for score in averages]):
            items = sum(score.items for score in scores.values())
            scores["Mean"] = Score(total.mean, total.deviation or 0.0, items)
        runs = []
        for run in entry.runs:
            folder = f"ablation/{run.id}"
            places = f"{folder}/model", f"{folder}/scores.json", f"{case.id}/data"
            runs.append(Run(run, run.seed, *places))
        lines[entry.label] = Line(entry.id, entry.label, tuple(runs), scores)
    tasks = tuple(column.tasks for column in case.averaged)
    columns = dict.fromkeys(("Mean", *seeds), tasks)
    errors = "sample standard deviation over seeds; of one seed, standard error over test items"
    return Table("table3", errors, columns, lines, seeds)


def tables(experiment: Experiment) -> dict[str, Table]:
    """Return every table of scores by the name of its files."""
    found = [table for case in experiment.cases for table in _case_tables(case)]
    if experiment.ablation:
        found.append(_ablation_table(experiment.ablation))
    return {table.name: table for table in found}


def one_of(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """Return the entry of a name as a person writes it, capitals and spaces aside.

    Raises:
        UserError: There is none; the nearest is named.
    """
    plain = {key.casefold().replace(" ", ""): key for key in known}
    key = plain.get(name.casefold().replace(" ", "").rstrip("†‡°"))
    if key is None:
        raise UserError(f"no {what} {name!r}{nearest(name, known)}; give one that is there")
    return known[key]


class Steps:
    """The steps of a results folder, found by the hashes under which later ones name them."""

    def __init__(self, results: Path) -> None:
        """Say which folder; a world's manifests are read once they are asked for."""
        self.results, self.reader = results, Reader(results)
        self._worlds: dict[str, dict[str, str]] = {}
        self._outputs: dict[str, dict[str, dict[str, str]]] = {}  # by world and folder

    def world(self, world: str) -> dict[str, str]:
        """Return paths by hash: of manifests, of models' weights, and of single files."""
        if world not in self._worlds:
            # Two merges may be equal; the first that was made is what others were made from.
            found: dict[str, str] = self._worlds.setdefault(world, {})
            for pattern in _MADE:
                for path in sorted((self.results / world).glob(f"{pattern}/{NAME}")):
                    folder = path.parent.relative_to(self.results).as_posix()
                    about = self.reader.optional(path, _ABOUT, "manifest")
                    outputs = about.get("outputs", {})
                    self._outputs.setdefault(world, {})[folder] = outputs
                    found.setdefault(sha256_file(path), folder)
                    if weights := fingerprint(outputs):
                        found.setdefault(weights, folder)
                    for name, own in outputs.items():
                        found.setdefault(own, f"{folder}/{name}")
        return self._worlds[world]

    def _place(self, name: str, recorded: str, world: str) -> str:
        """Return the path of an input; empty where there is none."""
        place = self.world(world).get(recorded, "")
        if not place and name.partition(".")[0] in _MODELS:
            # Its manifest may have hashes of another kind than the step that read it.
            for folder, outputs in self._outputs.get(world, {}).items():
                if has_fingerprint(recorded, outputs, self.results / folder):
                    return folder
        return place

    @functools.cache  # noqa: B019 - one object a command
    def step(self, path: str, world: str) -> Step | None:
        """Return the record of a folder or of a score file; None where none can be read."""
        place = self.results / path
        manifest = place / NAME if place.is_dir() else beside(place)
        if not manifest.is_file():
            return None
        defaults: dict[str, Any]
        defaults = {"kind": "", "parameters": {}, "inputs": {}, "outputs": {}, "seed": None}
        about = self.reader.optional(manifest, _ABOUT, "manifest")
        if not about:
            return None
        about = defaults | {"versions": {}} | about
        inputs = [
            (name, own, self._place(name, own, world)) for name, own in about["inputs"].items()
        ]
        cost = place / "cost.json" if place.is_dir() else place.with_suffix(".cost.json")
        ran = self.reader.optional(cost, COST, "cost")
        return Step(
            path,
            about,
            sha256_file(manifest),
            tuple(inputs),
            ran.get("command") or UNKNOWN,
            ran.get("commit") or UNKNOWN,
        )

    @functools.cache  # noqa: B019 - one object a command
    def _recorded(self, path: str) -> str:
        """Return the folder whose manifest records a path; empty where there is none."""
        while path and not (self.results / path / NAME).is_file():
            path = path.rpartition("/")[0]
        return path

    def chain(self, path: str, world: str) -> list[Step]:
        """List a step and all that it was made from, each once and after what it needed."""
        seen: set[str] = set()
        found: list[Step] = []

        def add(path: str) -> None:
            path = self._recorded(path)
            step = self.step(path, world) if path and path not in seen else None
            if step:
                seen.add(path)
                for _, _, place in step.inputs:
                    add(place)
                found.append(step)

        add(path)
        return found


def command(results: Path, run: Run, tasks: Sequence[str], about: Mapping[str, Any]) -> str:
    """Write the command that scores a model again on some tasks only.

    Args:
        results: The results folder.
        run: The model.
        tasks: Full task names.
        about: The manifest of its scores.
    """
    given = about["parameters"]
    options = {
        "model": results / run.folder,
        "suites": ",".join(tasks),
        "data": results / run.data,
        **{name: given.get(name) for name in ("split", "backend", "dtype", "engine")},
        **{name: given.get(name) for name in ("fidelity", "prompt", "limit", "adapter")},
        **{name.replace("_", "-"): given.get(name) for name in ("batch_size", "max_length")},
        "seed": about["seed"],
        "out": f"{AGAIN}/{run.scores}",
    }
    words = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]
    words += ["--chat-template"] if given.get("chat_template") else []
    setting = about.get("numerics", {}).get("setting", "fast")
    before = "" if setting == "fast" else f"BOTTLE_NUMERICS={shlex.quote(setting)} "
    return before + shlex.join(["python", "-m", "evaluation", *words])
