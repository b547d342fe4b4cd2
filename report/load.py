"""Reads a results folder: scores, manifests, gate; whatever is missing stays a visible gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.manifest import beside, check_recorded, fingerprint, recorded_hash
from common.worlds import folder_of, seeds_of
from report import same_world
from report.averages import Score
from report.experiment import Ablation, Case, Column, Experiment, Model, Objective, searched
from report.worlds import pooled

NOT_RUN = "not run"
STALE = "changed since it was evaluated"


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_scores(path: Path) -> tuple[dict[str, Score], int | None]:
    """Read scores by full task name and the seed from a score file of `python -m evaluation`.

    Raises:
        UserError: The file is not a score file.
    """
    return _scores(path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    check_recorded(path)
    return read_json(path)


def _scores(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, Score], int | None]:
    try:
        for name, entry in content["tasks"].items():
            if entry["value"] is None:
                raise UserError(f"{path}: task {name} has no score ({entry['undefined']}); drop it")
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
        raise UserError(f"{path}: not a score file ({error!r}); evaluate the model again") from None
    for name, score in tasks.items():
        if score.items < 1:
            raise UserError(f"{path}: task {name} has no items; evaluate the model again")
    return tasks, content.get("seed")


def _edited(scores: Path) -> bool:
    about = _optional(beside(scores))
    return "scores" in about.get("extra", {}).get("accepted", {})


def _circumstances(path: Path) -> dict[str, Any]:
    """Read a model's backend, which tasks had stand-ins for rows, and whether it was edited."""
    content = _optional(path)
    tasks = content.get("tasks", {})
    stand_ins = {name: entry["stand_in"] for name, entry in tasks.items() if "stand_in" in entry}
    backend = content.get("backend", "")
    return {"backend": backend, "stand_ins": stand_ins, "edited": _edited(path)}


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
        samples = manifest["parameters"].get("set", {}).get("samples")
        rows = f"{len(sources)} × {samples} samples" if samples else f"{len(sources)} sets"
        seen.append(f"calibration ({rows})")
    if "hub" in row:
        return "not known here"
    if searched(row):
        planned = len(row["tune"]) if "tune" in row else row.get("evolve", {}).get("budget")
        search = manifest.get("parameters", {}).get("search", {})
        number = search.get("evaluations", planned)
        seen.append(f"dev items ({number} evaluations)" if number else "dev items")
    if not seen and not manifest:
        return "not recorded"
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


def _fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of a model by its manifest; None without one that has its weights."""
    return fingerprint(_optional(folder / "manifest.json").get("outputs", {}))


def _other_inputs(
    folder: Path, content: Mapping[str, Any], inputs: Mapping[str, str], data: Path
) -> str | None:
    """Say which input of a score is not the one that there is now; None where all agree.

    What has no manifest, such as scores that were dropped in, cannot be compared.

    Args:
        folder: The model's folder.
        content: The score file.
        inputs: What its manifest says that it was made from; empty where it has none.
        data: The folder of the items.
    """
    present = _fingerprint(folder)
    for evaluated in (content.get("weights"), inputs.get("weights")):
        if present and evaluated and evaluated != present:
            return STALE
    for task in content["tasks"]:
        suite, _, id = task.partition("/")
        path = data / content.get("split", "test") / suite.split(":")[0] / f"{id}.jsonl"
        recorded = recorded_hash(path)
        if recorded and inputs.get(task, recorded) != recorded:
            return f"evaluated on other items of {task} than its data folder holds now"
    return None


def _outcome(
    folder: Path, scores: Path, smoke: Mapping[str, Any], data: Path
) -> tuple[str, dict[str, Score], int | None]:
    """Return a model's status, scores by task and seed; without scores unless it is ``ok``.

    A row's old scores must not pass for those of a merge that has failed or changed since.

    Args:
        folder: The model's folder; it may be missing where only scores were kept.
        scores: The file of its scores.
        smoke: What the smoke check found of the model.
        data: The folder of the items that it answers.
    """
    for failed in (folder.with_name(f"{folder.name}.failed"), scores.with_suffix(".failed")):
        if failed.exists():
            reason = failed.read_text(encoding="utf-8").strip().removeprefix("error: ")
            return f"failed: {reason or 'no reason given'}", {}, None
    if not scores.exists():
        return NOT_RUN, {}, None
    content = _read(scores)
    for task, entry in content.get("tasks", {}).items():
        # One model's answers, however odd, must not cost all others their tables.
        if isinstance(entry, Mapping) and "undefined" in entry and entry.get("value") is None:
            return f"failed: {task} has no score: {entry['undefined']}", {}, None
    tasks, seed = _scores(scores, content)
    inputs = _optional(beside(scores)).get("inputs", {})
    if why := _other_inputs(folder, content, inputs, data):
        return why, {}, None
    if bad := smoke.get("not_finite", 0):
        status = f"failed: logits are NaN or infinite at {bad} positions of the smoke text"
        return status, {}, seed
    return "ok", tasks, seed


def _smoke(path: Path) -> dict[str, dict[str, Any]]:
    """Read what the smoke check found, by model; see `checkpoints.smoke`."""
    found = _optional(path)
    if not found:
        return {}
    check_recorded(path)
    try:
        return {"base": dict(found["model"]), **found["parents"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a smoke check ({error!r}); run it again") from None


def _model(
    world: Path, id: str, folder: str, about: Mapping[str, Any], smoke: Mapping, wanted: int | None
) -> Model:
    scores = world / "scores" / "test" / f"{id}.json"
    made = world / folder / id
    status, tasks, seed = _outcome(made, scores, smoke, world / "data")
    if wanted is not None and seed is not None and seed != wanted:
        status, tasks = f"of another world (seed {seed}, not {wanted})", {}
    manifest = _optional(made / "manifest.json")
    row = about.get("row")
    common = {
        "id": id,
        "label": about["label"],
        "kind": about["kind"],
        "status": status,
        "seed": seed,
        "tasks": tasks,
        "manifest": manifest,
        "smoke": smoke,
        **(_circumstances(scores) if status == "ok" else {}),
    }
    if row is None:
        return Model(**common, data="own training text" if about["kind"] == "expert" else "")
    return Model(
        **common,
        method=row.get("method", ""),
        data=_data_seen(row, manifest),
        embeddings_and_norms=_embeddings(row, manifest),
        best_of=row.get("best_of", True),
        counted=_optional(made / "cost.json").get("counted", {}),
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
    entry, world = config["cases"][case], results / (folder or case)
    base = entry.get("base", {}).get("label", "Base")
    smoke = _smoke(world / "smoke.json")
    check_recorded(world / "gate.json")
    gate = _optional(world / "gate.json")

    # A row without scores is shown too, so that no gap passes for a row that nobody wanted.
    def model(id: str, folder: str, **about: Any) -> Model:
        return _model(world, id, folder, about, smoke.get(id, {}), seed)

    models = [model("base", "models", label=base, kind="base")]
    for id, expert in entry["experts"].items():
        models.append(model(id, "models", label=expert["label"], kind="expert"))
    more: list[Model] = []
    for id, row in config["methods"].items():
        if case in row.get("cases", [case]):
            place = more if row.get("table") == "more" else models
            place.append(model(id, "merges", label=row["label"], kind="merge", row=row))
    columns = [Column(c["label"], tuple(c["tasks"]), True) for c in entry["columns"]]
    columns += [Column(c["label"], tuple(c["tasks"]), False) for c in entry.get("beside", [])]
    return Case(
        id=folder or case,
        table=entry["table"],
        title=entry["title"],
        columns=tuple(columns),
        models=tuple(models),
        experts=entry["experts"],
        gate=gate.get("experts", {}),
        failed=gate.get("failed", {}),
        notes=tuple(entry.get("notes", ())),
        more=tuple(more),
    )


def load_worlds(config: Mapping[str, Any], results: Path, case: str) -> Case:
    """Read one case study in all its worlds; see `report.worlds.pooled`."""
    seeds = seeds_of(config)
    found = {s: load_case(config, results, case, folder_of(case, s, seeds), s) for s in seeds}
    if len(seeds) == 1:
        return found[seeds[0]]
    return pooled(found, case, stop=config.get("gate", {}).get("stop", True))


def load_ablation(config: Mapping[str, Any], results: Path) -> Ablation | None:
    """Read the ablation's runs; None where the configuration has no ablation."""
    entry = config.get("ablation")
    if not entry:
        return None
    objectives = []
    smoke = _smoke(results / "ablation" / "smoke.json")
    for id, about in entry["objectives"].items():
        runs = []
        for seed in entry["seeds"]:
            folder = results / "ablation" / id / f"seed{seed}"
            # A run whose model is not kept was checked on its own.
            own = smoke if entry.get("keep_merges", True) else _smoke(folder / "smoke.json")
            checked = own.get(f"{id}/seed{seed}", {})
            scores, data = folder / "scores.json", results / entry["case"] / "data"
            status, tasks, _ = _outcome(folder / "model", scores, checked, data)
            runs.append(
                Model(
                    f"{id}/seed{seed}",
                    about["label"],
                    "merge",
                    status=status,
                    seed=seed,
                    tasks=tasks,
                    edited=_edited(scores),
                    smoke=checked,
                    counted=_optional(folder / "model" / "cost.json").get("counted", {}),
                    manifest=_optional(folder / "model" / "manifest.json"),
                )
            )
        objectives.append(Objective(id, about["label"], tuple(runs), about.get("extra", False)))
    case = load_case(config, results, entry["case"], seed=seeds_of(config)[0])
    return Ablation(case, tuple(entry["seeds"]), tuple(objectives))


def score_files(config: Mapping[str, Any], results: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file of scores, gate or smoke check that the report reads, with its path."""
    wanted = []
    seeds = seeds_of(config)
    for case, entry in config["cases"].items():
        models = ["base", *entry["experts"]]
        models += [id for id, row in config["methods"].items() if case in row.get("cases", [case])]
        for world in (folder_of(case, seed, seeds) for seed in seeds):
            wanted += [f"{world}/gate.json", f"{world}/smoke.json"]
            wanted += [f"{world}/scores/test/{id}.json" for id in models]
    ablation = config.get("ablation") or {"objectives": {}, "seeds": []}
    wanted.append("ablation/smoke.json")
    for id in ablation["objectives"]:
        for seed in ablation["seeds"]:
            wanted += [f"ablation/{id}/seed{seed}/{name}.json" for name in ("scores", "smoke")]
    for name in wanted:
        if (results / name).exists():
            yield name, results / name


def load(config_path: Path, results: Path) -> Experiment:
    """Read an experiment; models without scores are rows that say so.

    Args:
        config_path: The resolved configuration as JSON.
        results: The results folder.

    Raises:
        UserError: There is no score at all, a file is damaged, or the models are of another world.
    """
    config = read_json(config_path)
    for key in ("name", "cases", "methods"):
        if key not in config:
            raise UserError(
                f"{config_path}: not a resolved configuration (it lacks {key!r}); "
                "give the config.json of the results folder"
            )
    same_world.check(config, results)
    checks = ("gate.json", "smoke.json")
    if all(name.endswith(checks) for name, _ in score_files(config, results)):
        raise UserError(
            f"no scores in {results}: run `make reproduce` first, or give a folder with "
            "<case>/scores/test/<model>.json"
        )
    return Experiment(
        name=config["name"],
        seed=seeds_of(config)[0],
        results=results,
        cases=tuple(load_worlds(config, results, case) for case in config["cases"]),
        ablation=load_ablation(config, results),
        config=config,
    )
