"""Reads a results folder: scores, manifests, gate; whatever is missing stays a visible gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import read_json
from report.averages import Score, mean

NOT_RUN = "not run"


@dataclass(frozen=True)
class Column:
    """A column of a table: the mean over its tasks.

    Attributes:
        label: Its title.
        tasks: Full task names (suite/task).
        in_average: False for a column that is shown beside the average.
    """

    label: str
    tasks: tuple[str, ...]
    in_average: bool


@dataclass(frozen=True)
class Model:
    """A row of a table.

    Attributes:
        id: Name of its score file and folder.
        label: Its title.
        kind: base, expert or merge.
        method: The merge method, empty for base and experts.
        data: What data the merge saw.
        embeddings_and_norms: Where these weights come from: own, base or merged.
        best_of: Whether the row takes part in the marks for the best merge.
        status: ``ok``, ``not run``, or ``failed: REASON``.
        seed: Seed of its evaluation and merge, None without scores.
        tasks: Test scores by full task name.
        counted: Deterministic amounts of making it: tokens, FLOPs, evaluations.
        manifest: Its manifest, empty where there is none.
    """

    id: str
    label: str
    kind: str
    method: str = ""
    data: str = ""
    embeddings_and_norms: str = "own"
    best_of: bool = False
    status: str = "ok"
    seed: int | None = None
    tasks: Mapping[str, Score] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def column(self, column: Column) -> Score | None:
        """Return the score of a column, None where a task of it has none."""
        return mean([self.tasks.get(task) for task in column.tasks])


@dataclass(frozen=True)
class Case:
    """A case study: what Table 1 or Table 2 shows.

    Attributes:
        id: Its name in the configuration and its folder.
        table: Name of its table.
        title: Its title.
        columns: The averaged columns, then those beside the average.
        models: Base, experts, merges, in the configuration's order.
        experts: By expert: label and domain, from the configuration.
        gate: What the gate found on dev data; empty where it has not run.
    """

    id: str
    table: str
    title: str
    columns: tuple[Column, ...]
    models: tuple[Model, ...]
    experts: Mapping[str, Mapping[str, Any]]
    gate: Mapping[str, Mapping[str, Any]]

    @property
    def averaged(self) -> list[Column]:
        """The columns that the average is made of."""
        return [column for column in self.columns if column.in_average]

    def average(self, model: Model) -> Score | None:
        """Return a model's average over the averaged columns, None where one is missing."""
        return mean([model.column(column) for column in self.averaged])

    @property
    def tasks(self) -> list[str]:
        """All tasks in the order of the columns."""
        return list(dict.fromkeys(task for column in self.columns for task in column.tasks))

    def task_label(self, task: str) -> str:
        """Return a task's title: its column's, with the task's own name where several share it."""
        column = next(column for column in self.columns if task in column.tasks)
        if len(column.tasks) == 1:
            return column.label
        return f"{column.label}: {task.split('/')[1]}"

    def not_learned(self) -> dict[str, list[str]]:
        """Return, by task, the labels of experts that did not learn it although they should."""
        missed: dict[str, list[str]] = {}
        for expert, judged in self.gate.items():
            for task, result in judged["tasks"].items():
                if not result["learned"]:
                    label = self.experts.get(expert, {}).get("label", expert)
                    missed.setdefault(task, []).append(label)
        return missed

    def held_out(self) -> list[str]:
        """Return the tasks that are in no expert's domain."""
        owned = {task for expert in self.experts.values() for task in expert["domain"]}
        return [task for task in self.tasks if task not in owned]

    def chance(self) -> Model:
        """Return the row of a uniform random choice, as far as scores tell the chance levels."""
        known: dict[str, Score] = {}
        for model in self.models:
            for task, score in model.tasks.items():
                known.setdefault(task, Score(score.chance, 0.0, score.items, score.chance))
        return Model("chance", "Random choice", "chance", tasks=known, embeddings_and_norms="")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_scores(path: Path) -> tuple[dict[str, Score], int | None]:
    """Read one score file.

    Args:
        path: A scores.json as `python -m evaluation` writes it.

    Returns:
        Scores by full task name, and the seed.

    Raises:
        UserError: The file is not a score file.
    """
    content = read_json(path)
    try:
        tasks = {
            name: Score(
                float(entry["value"]),
                float(entry["stderr"]),
                int(entry["items"]),
                float(entry.get("chance", 0.0)),
            )
            for name, entry in content["tasks"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a score file ({error!r}); evaluate the model again"
        ) from None
    for name, score in tasks.items():
        if score.items < 1:
            raise UserError(f"{path}: task {name} has no items; evaluate the model again")
    return tasks, content.get("seed")


def _data_seen(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Say what data a merge saw: from its entry's words, else from its manifest and searches."""
    if row.get("data"):
        return str(row["data"])
    extra = manifest.get("extra", {})
    if extra.get("data"):
        return str(extra["data"])
    seen = []
    sources = [name for name in manifest.get("inputs", {}) if name.startswith("calibration")]
    if sources:
        samples = manifest.get("parameters", {}).get("samples")
        rows = f"{len(sources)} × {samples} samples" if samples else f"{len(sources)} sets"
        seen.append(f"calibration ({rows})")
    if "tune" in row:
        seen.append(f"dev items ({len(row['tune'])} evaluations)")
    if "evolve" in row:
        seen.append(f"dev items ({row['evolve'].get('budget', '?')} evaluations)")
    if not seen and not manifest:
        return "not recorded"
    return " + ".join(seen) or "none"


def _status(folder: Path, scored: bool) -> str:
    if scored:
        return "ok"
    failed = _optional(folder / "failed.json")
    if failed:
        return f"failed: {failed.get('reason', 'no reason given')}"
    return NOT_RUN


def _model(results: Path, case: str, id: str, folder: str, about: Mapping[str, Any]) -> Model:
    scores = results / case / "scores" / "test" / f"{id}.json"
    made = results / case / folder / id
    tasks, seed = read_scores(scores) if scores.exists() else ({}, None)
    manifest = _optional(made / "manifest.json")
    row = about.get("row")
    common = {
        "id": id,
        "label": about["label"],
        "kind": about["kind"],
        "status": _status(made, bool(tasks)),
        "seed": seed,
        "tasks": tasks,
        "manifest": manifest,
    }
    if row is None:
        return Model(**common, data="own training text" if about["kind"] == "expert" else "")
    return Model(
        **common,
        method=row.get("method", ""),
        data=_data_seen(row, manifest),
        embeddings_and_norms=row.get("embeddings_and_norms", "merged"),
        best_of=row.get("best_of", True),
        counted=_optional(made / "cost.json").get("counted", {}),
    )


def load_case(config: Mapping[str, Any], results: Path, case: str) -> Case:
    """Read one case study.

    Args:
        config: The resolved configuration.
        results: The results folder.
        case: The case's name.

    Returns:
        The case with every row of the configuration, run or not.
    """
    entry = config["cases"][case]
    base = entry.get("base", {}).get("label", "Base")
    models = [_model(results, case, "base", "models", {"label": base, "kind": "base"})]
    for id, expert in entry["experts"].items():
        about = {"label": expert["label"], "kind": "expert"}
        models.append(_model(results, case, id, "models", about))
    for id, row in config["methods"].items():
        if case in row.get("cases", [case]):
            about = {"label": row["label"], "kind": "merge", "row": row}
            models.append(_model(results, case, id, "merges", about))
    columns = [Column(c["label"], tuple(c["tasks"]), True) for c in entry["columns"]]
    columns += [Column(c["label"], tuple(c["tasks"]), False) for c in entry.get("beside", [])]
    return Case(
        id=case,
        table=entry["table"],
        title=entry["title"],
        columns=tuple(columns),
        models=tuple(models),
        experts=entry["experts"],
        gate=_optional(results / case / "gate.json").get("experts", {}),
    )


@dataclass(frozen=True)
class Objective:
    """A row of Table 3.

    Attributes:
        id: Its name in the configuration and its folder.
        label: Its title.
        runs: One model a seed, in the order of the seeds.
    """

    id: str
    label: str
    runs: tuple[Model, ...]


@dataclass(frozen=True)
class Ablation:
    """The objective's ablation, what Table 3 shows.

    Attributes:
        case: The case study whose models and columns it uses.
        seeds: Seeds of the runs.
        objectives: The rows.
    """

    case: Case
    seeds: tuple[int, ...]
    objectives: tuple[Objective, ...]


def load_ablation(config: Mapping[str, Any], results: Path) -> Ablation | None:
    """Read the ablation's runs; None where the configuration has no ablation."""
    entry = config.get("ablation")
    if not entry:
        return None
    objectives = []
    for id, about in entry["objectives"].items():
        runs = []
        for seed in entry["seeds"]:
            folder = results / "ablation" / id / f"seed{seed}"
            scores = folder / "scores.json"
            tasks = read_scores(scores)[0] if scores.exists() else {}
            status = _status(folder, bool(tasks))
            runs.append(
                Model(
                    f"{id}/seed{seed}",
                    about["label"],
                    "merge",
                    status=status,
                    seed=seed,
                    tasks=tasks,
                    counted=_optional(folder / "model" / "cost.json").get("counted", {}),
                    manifest=_optional(folder / "model" / "manifest.json"),
                )
            )
        objectives.append(Objective(id, about["label"], tuple(runs)))
    return Ablation(
        load_case(config, results, entry["case"]), tuple(entry["seeds"]), tuple(objectives)
    )


@dataclass(frozen=True)
class Experiment:
    """Everything that the report shows.

    Attributes:
        name: The experiment's name.
        seed: Its seed.
        results: The results folder.
        cases: Case studies in the configuration's order.
        ablation: The objective's ablation, None where there is none.
        config: The resolved configuration.
    """

    name: str
    seed: int
    results: Path
    cases: tuple[Case, ...]
    ablation: Ablation | None
    config: Mapping[str, Any]

    def case(self, id: str) -> Case:
        """Return a case by name, or raise a UserError that lists them."""
        for case in self.cases:
            if case.id == id:
                return case
        raise UserError(f"no case {id!r}{nearest(id, [case.id for case in self.cases])}")


def score_files(config: Mapping[str, Any], results: Path) -> Iterator[tuple[str, Path]]:
    """Yield every score and gate file that the report reads, with its path below `results`."""
    wanted = []
    for case, entry in config["cases"].items():
        models = ["base", *entry["experts"]]
        models += [id for id, row in config["methods"].items() if case in row.get("cases", [case])]
        wanted += [f"{case}/gate.json", *(f"{case}/scores/test/{id}.json" for id in models)]
    ablation = config.get("ablation") or {"objectives": {}, "seeds": []}
    wanted += [
        f"ablation/{id}/seed{seed}/scores.json"
        for id in ablation["objectives"]
        for seed in ablation["seeds"]
    ]
    for name in wanted:
        if (results / name).exists():
            yield name, results / name


def load(config_path: Path, results: Path) -> Experiment:
    """Read a whole experiment.

    Args:
        config_path: The resolved configuration as JSON.
        results: The results folder.

    Returns:
        The experiment; models without scores are rows that say so.

    Raises:
        UserError: There is no score at all, or a file is damaged.
    """
    config = read_json(config_path)
    for key in ("name", "cases", "methods"):
        if key not in config:
            raise UserError(
                f"{config_path}: not a resolved configuration (it lacks {key!r}); "
                "give the config.json that stands beside the results"
            )
    if all(name.endswith("gate.json") for name, _ in score_files(config, results)):
        raise UserError(
            f"no scores in {results}: run `make reproduce` first, or give a folder with "
            "<case>/scores/test/<model>.json"
        )
    return Experiment(
        name=config["name"],
        seed=config.get("seed", 0),
        results=results,
        cases=tuple(load_case(config, results, case) for case in config["cases"]),
        ablation=load_ablation(config, results),
        config=config,
    )
