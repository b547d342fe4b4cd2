"""Reads a results folder: scores, manifests, gate; whatever is missing stays a visible gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.manifest import beside
from common.worlds import folder_of, seeds_of
from report import same_world
from report.answers import attached, is_an_expert
from report.experiment import (
    Ablation,
    Case,
    Column,
    Experiment,
    Model,
    Objective,
    searched,
    worlds_of,
)
from report.reading import COST, GATE, INSPECTION, MANIFEST, SMOKE, Reader
from report.scores import NOT_RUN, STALE, Wanted, alike, outcome, read_scores
from report.worlds import pooled

__all__ = ["NOT_RUN", "STALE", "load", "load_case", "read_scores", "score_files"]


def _edited(reader: Reader, scores: Path) -> bool:
    about = reader.optional(beside(scores), MANIFEST, "manifest")
    return "scores" in about.get("extra", {}).get("accepted", {})


def _circumstances(reader: Reader, path: Path) -> dict[str, Any]:
    """Read a model's backend, which tasks had stand-ins for rows, and whether it was edited."""
    content = read_json(path)
    tasks = content["tasks"]
    stand_ins = {name: entry["stand_in"] for name, entry in tasks.items() if "stand_in" in entry}
    backend = content.get("backend", "")
    return {"backend": backend, "stand_ins": stand_ins, "edited": _edited(reader, path)}


def _data_seen(row: Mapping[str, Any], manifest: Mapping[str, Any], made: bool) -> str:
    """Say what data a merge saw: from its entry's words, else from its manifest and searches."""
    if row.get("data"):
        return str(row["data"])
    extra = manifest.get("extra", {})
    if extra.get("data"):
        return str(extra["data"])
    seen = []
    sources = [name for name in manifest.get("inputs", {}) if name.startswith("calibration")]
    if sources:
        samples = manifest["parameters"].get("set", {}).get("samples")
        rows = f"{len(sources)} × {samples} samples" if samples else f"{len(sources)} sets"
        seen.append(f"calibration ({rows})")
    if "hub" in row:
        return "not known here"
    if made and not manifest:  # what the configuration plans may not be what was done
        return "not recorded"
    if searched(row):
        planned = len(row["tune"]) if "tune" in row else row.get("evolve", {}).get("budget")
        search = manifest.get("parameters", {}).get("search", {})
        number = search.get("evaluations", planned)
        seen.append(f"dev items ({number} evaluations)" if number else "dev items")
    return " + ".join(seen) or "none"


def _embeddings(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Say whose embeddings and norms a merge has; of a path, whose embedding and final norm."""
    if "hub" in row:
        return "as published"
    if row.get("evolve", {}).get("space") != "data-flow":
        return row.get("embeddings_and_norms", "merged")
    known = row["evolve"].get("embedding_from", "the first expert")
    whose = manifest.get("parameters", {}).get("embedding_from", known)
    return "base" if whose == "base" else f"of {whose}"


def _smoke(reader: Reader, path: Path) -> dict[str, dict[str, Any]]:
    """Read what the smoke check found, by model; see `checkpoints.smoke`."""
    found = reader.optional(path, SMOKE, "smoke check", recorded=True)
    return {"base": dict(found["model"]), **found["parents"]} if found else {}


def _model(
    reader: Reader, world: Path, id: str, folder: str, about: Mapping[str, Any], wanted: Wanted
) -> Model:
    """Read a row: its scores, and how its model was made.

    Args:
        reader: Collects what is wrong with files.
        world: The world's folder.
        id: The row's name.
        folder: Of its model in the world's: ``models`` or ``merges``.
        about: Its label, kind, smoke check and, of a merge, its entry in the configuration.
        wanted: What the table shows.
    """
    scores, made = world / "scores" / "test" / f"{id}.json", world / folder / id
    manifest = reader.optional(made / "manifest.json", MANIFEST, "manifest")
    smoke, row = about["smoke"], about.get("row")
    found = outcome(reader, id, scores, (made, manifest), smoke, world / "data", wanted)
    common = {
        "id": id,
        "label": about["label"],
        "kind": about["kind"],
        "status": found.status,
        "seed": found.seed,
        "tasks": found.tasks,
        "lacking": found.lacking,
        "evaluated": found.evaluated,
        "manifest": manifest,
        "smoke": smoke,
        **(_circumstances(reader, scores) if found.status == "ok" else {}),
    }
    if row is None:
        return Model(**common, data="own training text" if about["kind"] == "expert" else "")
    return Model(
        **common,
        method=row.get("method", ""),
        data=_data_seen(row, manifest, made=found.status != NOT_RUN),
        embeddings_and_norms=_embeddings(row, manifest),
        best_of=row.get("best_of", True),
        counted=reader.optional(made / "cost.json", COST, "cost").get("counted", {}),
    )


def load_case(
    config: Mapping[str, Any], results: Path, case: str, folder: str = "", seed: int | None = None
) -> Case:
    """Read one case study in one world, with every row of the configuration, run or not.

    Args:
        config: The resolved configuration.
        results: The results folder.
        case: The case's name in the configuration.
        folder: The world's folder; the case's own name if empty.
        seed: The world's seed, whose scores alone are read; None for those of any seed.
    """
    reader = Reader(results)
    entry, world = config["cases"][case], results / (folder or case)
    base = entry.get("base", {}).get("label", "Base")
    smoke = _smoke(reader, world / "smoke.json")
    gate = reader.optional(world / "gate.json", GATE, "gate's verdict", recorded=True)
    place = world / "inspection.json"
    inspection = reader.optional(place, INSPECTION, "inspection", recorded=True)
    columns = [Column(c["label"], tuple(c["tasks"]), True) for c in entry["columns"]]
    columns += [Column(c["label"], tuple(c["tasks"]), False) for c in entry.get("beside", [])]
    names = frozenset(("base", *entry["experts"], *config["methods"]))
    tasks = dict.fromkeys(task for column in columns for task in column.tasks)
    wanted = Wanted(names, list(tasks), seed)

    # A row without scores is shown too, so that no gap passes for a row that nobody wanted.
    def model(id: str, folder: str, **about: Any) -> Model:
        return _model(reader, world, id, folder, about | {"smoke": smoke.get(id, {})}, wanted)

    models = [model("base", "models", label=base, kind="base")]
    for id, expert in entry["experts"].items():
        models.append(model(id, "models", label=expert.get("label", id), kind="expert"))
    rows = {id: row for id, row in config["methods"].items() if case in row.get("cases", [case])}
    for id, row in rows.items():
        models.append(model(id, "merges", label=row.get("label", id), kind="merge", row=row))
    beyond = {id for id, row in rows.items() if row.get("table") == "more"}
    paths = {model.id: world / "scores" / "test" / f"{model.id}.json" for model in models}
    models = attached(reader, alike(reader, models, paths), paths)
    return Case(
        id=folder or case,
        table=entry["table"],
        title=entry["title"],
        columns=tuple(columns),
        models=tuple(model for model in models if model.id not in beyond),
        experts=entry["experts"],
        gate=gate.get("experts", {}),
        failed=gate.get("failed", {}),
        inspection=inspection,
        notes=tuple(entry.get("notes", ())),
        more=tuple(model for model in models if model.id in beyond),
        own_base="package" not in entry.get("base", {}),
        faults=tuple(reader.faults),
    )


def load_worlds(config: Mapping[str, Any], results: Path, case: str) -> Case:
    """Read one case study in all its worlds; see `report.worlds.pooled`."""
    seeds = seeds_of(config)
    found = {s: load_case(config, results, case, folder_of(case, s, seeds), s) for s in seeds}
    if len(seeds) == 1:
        (only,) = found.values()
        models, more = (
            tuple(replace(m, best_of=m.best_of and not is_an_expert({None: m})) for m in rows)
            for rows in (only.models, only.more)
        )
        return replace(only, models=models, more=more)
    return pooled(found, case, stop=config.get("gate", {}).get("stop", True))


def load_ablation(config: Mapping[str, Any], results: Path, case: Case) -> Ablation:
    """Read the ablation's runs, of a configuration that has an ablation.

    Args:
        config: The resolved configuration.
        results: The results folder.
        case: The case study whose columns it has, in its first world.
    """
    reader, entry = Reader(results), config["ablation"]
    names = frozenset(entry["objectives"])
    smoke = _smoke(reader, results / "ablation" / "smoke.json")
    runs, paths = [], {}
    for id, about in entry["objectives"].items():
        for seed in entry["seeds"]:
            folder, name = results / "ablation" / id / f"seed{seed}", f"{id}/seed{seed}"
            # A run whose model is not kept was checked on its own.
            own = smoke if entry.get("keep_merges", True) else _smoke(reader, folder / "smoke.json")
            checked, wanted = own.get(name, {}), Wanted(names, case.tasks, seed)
            scores, made = folder / "scores.json", folder / "model"
            paths[name] = scores
            manifest = reader.optional(made / "manifest.json", MANIFEST, "manifest")
            data = results / entry["case"] / "data"
            found = outcome(reader, id, scores, (made, manifest), checked, data, wanted)
            runs.append(
                Model(
                    name,
                    about.get("label", id),
                    "merge",
                    status=found.status,
                    seed=seed,
                    tasks=found.tasks,
                    lacking=found.lacking,
                    evaluated=found.evaluated,
                    edited=_edited(reader, scores),
                    smoke=checked,
                    counted=reader.optional(made / "cost.json", COST, "cost").get("counted", {}),
                    manifest=manifest,
                )
            )
    runs = attached(reader, alike(reader, runs, paths), paths)
    count, objectives = len(entry["seeds"]), []
    for place, (id, about) in enumerate(entry["objectives"].items()):
        several = tuple(runs[place * count : (place + 1) * count])
        label = about.get("label", id)
        objectives.append(Objective(id, label, several, about.get("extra", False)))
    return Ablation(case, tuple(entry["seeds"]), tuple(objectives), tuple(reader.faults))


def score_files(config: Mapping[str, Any], results: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file of scores, gate or smoke check that the report reads, with its path."""
    wanted = []
    seeds = seeds_of(config)
    for case, entry in config["cases"].items():
        models = ["base", *entry["experts"]]
        models += [id for id, row in config["methods"].items() if case in row.get("cases", [case])]
        for world in (folder_of(case, seed, seeds) for seed in seeds):
            wanted += [f"{world}/{name}.json" for name in ("gate", "smoke", "inspection")]
            wanted += [f"{world}/scores/test/{id}.json" for id in models]
    ablation = config.get("ablation") or {"objectives": {}, "seeds": []}
    wanted.append("ablation/smoke.json")
    for id in ablation["objectives"]:
        for seed in ablation["seeds"]:
            wanted += [f"ablation/{id}/seed{seed}/{name}.json" for name in ("scores", "smoke")]
    for name in wanted:
        if (results / name).exists():
            yield name, results / name


def _configuration(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(path)
    for key in ("name", "cases", "methods"):
        if not isinstance(config, dict) or key not in config:
            raise UserError(
                f"{path}: not a resolved configuration (it lacks {key!r}); "
                "give the config.json of the results folder"
            )
    return config


def load(config_path: Path, results: Path) -> Experiment:
    """Read an experiment; models without scores are rows that say so.

    Args:
        config_path: The resolved configuration as JSON.
        results: The results folder.

    Raises:
        UserError: There is no score at all, or the models are of another world.
    """
    config = _configuration(config_path)
    same_world.check(config, results)
    checks = ("gate.json", "smoke.json", "inspection.json")
    if all(name.endswith(checks) for name, _ in score_files(config, results)):
        raise UserError(
            f"no scores in {results}: run `make reproduce` first, or give a folder with "
            "<case>/scores/test/<model>.json"
        )
    cases = {case: load_worlds(config, results, case) for case in config["cases"]}
    ablation = None
    if config.get("ablation"):
        whole = cases[config["ablation"]["case"]]
        first = whole.each.get(seeds_of(config)[0], whole)
        ablation = load_ablation(config, results, first)
    lines = [line for _, world in worlds_of(list(cases.values())) for line in world.faults]
    lines += ablation.faults if ablation else ()
    return Experiment(
        name=config["name"],
        seed=seeds_of(config)[0],
        results=results,
        cases=tuple(cases.values()),
        ablation=ablation,
        config=config,
        faults=tuple(dict.fromkeys(lines)),
    )
