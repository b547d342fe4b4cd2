"""The part of a finished run that its tables need, kept as one small file of JSON lines."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import machine
from common.errors import UserError
from common.files import read_json, read_jsonl, write_text
from common.manifest import check_recorded
from common.worlds import folder_of, seeds_of
from report.answers import packed
from report.experiment import Experiment, worlds_of
from report.load import load

# The folders of an absolute path: kept scores are published, and these are one machine's.
_FOLDERS = re.compile(r"""(?<![^\s:=,"'(])/(?:[^\s/"']+/)+""")
_SCORE = ("value", "stderr", "items", "chance", "stand_in", "undefined", "metric")


def _names(config: Mapping[str, Any], results: Path) -> Iterator[str]:
    """Yield every file that tables, costs and verdicts read, by its name below the results."""
    yield machine.NAME
    seeds = seeds_of(config)
    for name, seed in itertools.product(config["cases"], seeds):
        case, about = folder_of(name, seed, seeds), config["cases"][name]
        yield from (f"{case}/{name}" for name in ("gate.json", "smoke.json", "inspection.json"))
        yield from (f"{case}/{name}/cost.json" for name in ("data", "teachers"))
        shared = sorted((results / case).glob("statistics/*/*/cost.json"))
        yield from (str(path.relative_to(results)) for path in shared)
        for id in ("base", *about["experts"], *config["methods"]):
            # Which of these exists separates a parent from a merge; the others are skipped.
            for made in ("models", "merges"):
                for end in (".failed", "/manifest.json", "/cost.json"):
                    yield f"{case}/{made}/{id}{end}"
            ends = (".json", ".manifest.json", ".failed", ".cost.json")
            yield from (f"{case}/scores/test/{id}{end}" for end in ends)
            yield f"{case}/scores/dev/{id}.cost.json"
    ablation = config.get("ablation") or {"objectives": {}, "seeds": []}
    yield "ablation/smoke.json"
    for id in ablation["objectives"]:
        for seed in ablation["seeds"]:
            run = f"ablation/{id}/seed{seed}"
            names = ("scores", "scores.manifest", "smoke", "scores.cost", "cost")
            yield from (f"{run}/{name}.json" for name in (*names, "model/manifest", "model/cost"))
            yield from (f"{run}/scores.failed", f"{run}/model.failed")


def _chosen(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: content[name] for name in names if name in content}


def _reduced(name: str, content: Any) -> Any:
    """Leave out of a file what no table, cost or verdict reads."""
    if name.endswith("cost.json"):
        return {k: v for k, v in content.items() if v and k not in ("command", "commit")}
    if name.endswith("manifest.json"):
        parameters = _chosen(content.get("parameters", {}), "set", "search", "embedding_from")
        weights = _chosen(content.get("outputs", {}), "model.safetensors")
        inputs = dict.fromkeys(content.get("inputs", {}), "")
        extra = _chosen(content.get("extra", {}), "data", "accepted")
        return {"parameters": parameters, "outputs": weights, "inputs": inputs, "extra": extra}
    if "tasks" in content:
        tasks = {task: _chosen(entry, *_SCORE) for task, entry in content["tasks"].items()}
        return _chosen(content, "backend", "seed", "weights", "lm_eval") | {"tasks": tasks}
    return content


def _portable(content: Any) -> Any:
    """Leave a file's name alone of each absolute path in a JSON value."""
    if isinstance(content, dict):
        return {name: _portable(part) for name, part in content.items()}
    if isinstance(content, (list, tuple)):
        return [_portable(part) for part in content]
    return _FOLDERS.sub("", content) if isinstance(content, str) else content


def _answers(experiment: Experiment, results: Path) -> Iterator[tuple[str, Any]]:
    """Yield what paired tests need of every row's items, as files next to its scores.

    Raises:
        UserError: A file is damaged: what is kept speaks for a run that nobody can look at again.
    """
    for line in experiment.faults:
        raise UserError(line)
    rows = [
        (f"{world.id}/scores/test/{model.id}", model)
        for _, world in worlds_of(experiment.cases)
        for model in world.all_models
    ]
    objectives = experiment.ablation.objectives if experiment.ablation else ()
    rows += [(f"ablation/{run.id}/scores", run) for each in objectives for run in each.runs]
    folders = set()
    for name, model in rows:
        if model.answers:
            # Which items ask for the same fact is the same for all rows of a world.
            folder = name.split("/")[0]
            yield f"{name}.answers.json", packed(model.answers, facts=folder not in folders)
            folders.add(folder)


def keep(config: Path, results: Path, out: Path) -> None:
    """Write a run's files, reduced to what tables need, as JSON lines of name and content."""
    rows = [("config.json", read_json(config))]
    for name in _names(rows[0][1], results):
        path = results / name
        if path.exists() and path.suffix == ".failed":
            rows.append((name, path.read_text(encoding="utf-8")))
        elif path.exists():
            check_recorded(path)
            kept = _reduced(name, read_json(path))
            # Of a score's manifest, tables need no more than that the score was edited.
            if not name.endswith(".manifest.json") or "accepted" in kept["extra"]:
                rows.append((name, kept))
    rows += _answers(load(config, results), results)
    lines = (json.dumps(_portable(row), ensure_ascii=False, separators=(",", ":")) for row in rows)
    write_text(out, "".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def opened(kept: Path) -> Iterator[Experiment]:
    """Lay a run that `keep` wrote out as a results folder for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in read_jsonl(kept):
            text = content if isinstance(content, str) else json.dumps(content)
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        yield load(Path(folder, "config.json"), Path(folder))
