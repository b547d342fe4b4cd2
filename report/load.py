"""Reads a results folder: scores, manifests, gate; whatever is missing stays a visible gap."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from report.averages import Score
from report.experiment import Ablation, Case, Column, Experiment, Model, Objective

NOT_RUN = "not run"
STALE = "changed since it was evaluated"


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
        raise UserError(f"{path}: not a score file ({error!r}); evaluate the model again") from None
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
        samples = manifest["parameters"].get("set", {}).get("samples")
        rows = f"{len(sources)} × {samples} samples" if samples else f"{len(sources)} sets"
        seen.append(f"calibration ({rows})")
    if "tune" in row or "evolve" in row:
        planned = len(row["tune"]) if "tune" in row else row["evolve"]["budget"]
        search = manifest.get("parameters", {}).get("search", {})
        seen.append(f"dev items ({search.get('evaluations', planned)} evaluations)")
    if not seen and not manifest:
        return "not recorded"
    return " + ".join(seen) or "none"


def _outcome(folder: Path, scores: Path) -> tuple[str, dict[str, Score], int | None]:
    """Read a model's scores, if they are its own, and say how it stands.

    A row's old scores must not pass for those of a merge that has failed or changed since.

    Args:
        folder: The model's folder; it may be missing where only scores were kept.
        scores: The file of its scores.

    Returns:
        The status, scores by task and the seed; no scores unless the status is ``ok``.
    """
    for failed in (folder.with_name(f"{folder.name}.failed"), scores.with_suffix(".failed")):
        if failed.exists():
            reason = failed.read_text(encoding="utf-8").strip().removeprefix("error: ")
            return f"failed: {reason or 'no reason given'}", {}, None
    if not scores.exists():
        return NOT_RUN, {}, None
    tasks, seed = read_scores(scores)
    shard = _optional(folder / "manifest.json").get("outputs", {}).get("model.safetensors")
    scored = read_json(scores).get("weights")
    if shard and scored:
        # As `checkpoints.reading.Checkpoint.fingerprint` defines it.
        present = hashlib.sha256(f"model.safetensors {shard}\n".encode()).hexdigest()
        if scored != present:
            return STALE, {}, None
    return "ok", tasks, seed


def _model(results: Path, case: str, id: str, folder: str, about: Mapping[str, Any]) -> Model:
    scores = results / case / "scores" / "test" / f"{id}.json"
    made = results / case / folder / id
    status, tasks, seed = _outcome(made, scores)
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
        notes=tuple(entry.get("notes", ())),
    )


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
            status, tasks, _ = _outcome(folder / "model", scores)
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
