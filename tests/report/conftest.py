"""A made-up results folder with known scores, as the stages before the report leave it."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import yaml

from common.calling import call
from common.worlds import folder_of, seeds_of

ROOT = Path(__file__).parents[2]


def score(value: float, items: int = 200, chance: float = 0.25) -> dict:
    """An entry of scores.json with the binomial standard error."""
    stderr = math.sqrt(value * (1 - value) / (items - 1))
    return {"metric": "acc", "value": value, "stderr": stderr, "items": items, "chance": chance}


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_scores(path: Path, tasks: dict, seed: int = 0) -> None:
    content = {"model": path.stem, "weights": "0" * 64, "split": "test", "backend": "hf"}
    write(path, content | {"dtype": "float32", "seed": seed, "tasks": tasks, "counted": {}})


def write_cost(path: Path, cpu_s: float, **counted: float) -> None:
    content = {"wall_s": cpu_s * 1.25, "cpu_s": cpu_s, "peak_rss_mb": 512, "counted": counted}
    write(path, content)


def tasks_of(case: dict) -> list[str]:
    return [task for column in case["columns"] + case["beside"] for task in column["tasks"]]


def inspected(experts: list[str], merges: list[str], seed: int = 0) -> dict:
    """What `python -m merges inspect` writes, with made-up numbers, for two layers and a head."""
    draw = random.Random(seed)

    def described() -> dict:
        pairs = itertools.combinations(experts, 2)
        return {
            "drift": {expert: draw.uniform(0.1, 0.2) for expert in experts},
            "cosine": {" ".join(pair): draw.uniform(-0.2, 0.2) for pair in pairs},
            "conflict": draw.uniform(0.4, 0.6),
            "kept": {m: {expert: draw.uniform(0, 1) for expert in experts} for m in merges},
            "outside": {merge: draw.uniform(0, 1) for merge in merges},
            "length": {merge: draw.uniform(0.1, 0.3) for merge in merges},
        }

    places = [*itertools.product((0, 1), ("attention", "mlp")), (None, "head")]
    groups = [{"layer": n, "module": part, "values": 9} | described() for n, part in places]
    found = {"experts": experts, "merges": merges, "all": described(), "groups": groups}
    ends = {name: draw.uniform(0.1, 0.9) for name in ("base", *experts, *merges)}

    def line(one: str, two: str) -> list[float]:
        inner = [draw.uniform(0.1, 0.9) for _ in range(3)]
        return [ends[one], *inner, ends[two]]

    lines = {
        "rows": dict.fromkeys(experts, 48),
        "places": [0.0, 0.25, 0.5, 0.75, 1.0],
        "base": {m: {e: line("base", m) for e in experts} for m in merges},
        "experts": {m: {e: line(m, e) for e in experts} for m in merges},
    }
    return found | {"lines": lines}


def fill(folder: Path, config: dict) -> None:
    """Write scores, manifests, costs and gates for everything that a configuration names."""
    draw = random.Random(1)
    seeds = seeds_of(config)
    for (name, case), world in itertools.product(config["cases"].items(), seeds):
        place = folder / folder_of(name, world, seeds)
        write_cost(place / "data/cost.json", 3.0)
        write_cost(place / "teachers/cost.json", 4.0, forward_tokens=1e5)
        models = dict.fromkeys(["base", *case["experts"]], "models")
        for row, about in config["methods"].items():
            if name in about.get("cases", [name]):
                models[row] = "merges"
        for model, kind in models.items():
            level = {"base": 0.3}.get(model, draw.uniform(0.35, 0.9))
            tasks = {}
            for task in tasks_of(case):
                value = round(200 * min(1.0, max(0.0, draw.gauss(level, 0.15)))) / 200
                tasks[task] = score(value)
            write_scores(place / f"scores/test/{model}.json", tasks, world)
            write_cost(place / f"scores/test/{model}.cost.json", 2.0, requests=1600)
            inputs = {}
            if config["methods"].get(model, {}).get("method") == "dam":
                inputs = {f"calibration.{expert}": "0" * 64 for expert in case["experts"]}
            manifest = {"kind": kind, "inputs": inputs, "parameters": {"set": {"samples": 1729}}}
            write(place / kind / model / "manifest.json", manifest)
            write_cost(place / kind / model / "cost.json", 10.0, forward_tokens=2e6, flops=3e12)
        experts = {}
        for expert, about in case["experts"].items():
            judged = {
                task: {"base": 0.25, "expert": 0.9, "learned": not task.endswith("/jsquad")}
                for task in about["domain"]
            }
            experts[expert] = {"domain": about["domain"], "base": 0.25, "expert": 0.9}
            experts[expert] |= {"stderr": 0.02, "tasks": judged}
        write(place / "gate.json", {"experts": experts})
        merges = [
            model
            for model, kind in models.items()
            if kind == "merges" and "space" not in config["methods"][model].get("evolve", {})
        ]
        write(place / "inspection.json", inspected(list(case["experts"]), merges, world))
    ablation = config["ablation"]
    for objective in ablation["objectives"]:
        level = draw.uniform(0.5, 0.7)
        for seed in ablation["seeds"]:
            run = folder / "ablation" / objective / f"seed{seed}"
            tasks = tasks_of(config["cases"][ablation["case"]])
            values = {task: score(round(200 * draw.gauss(level, 0.02)) / 200) for task in tasks}
            write_scores(run / "scores.json", values, seed)
            write_cost(run / "scores.cost.json", 2.0)
            write_cost(run / "model/cost.json", 20.0, backward_tokens=1e5)


SMALL = {
    "name": "small",
    "seed": 7,
    "cases": {
        "case1": {
            "table": "table1",
            "title": "Case study 1: two experts",
            "experts": {
                "ja": {"label": "Japanese expert", "domain": ["bottle_ja8/a", "bottle_ja8/jsquad"]},
                "math_a": {"label": "Maths & logic", "domain": ["bottle_gsm_en/gsm_en"]},
            },
            "columns": [
                {"label": "A_1", "tasks": ["bottle_ja8/a"]},
                {"label": "Pair", "tasks": ["bottle_ja8/jsquad", "bottle_ja8/c"]},
            ],
            "beside": [{"label": "GSM", "tasks": ["bottle_gsm_en/gsm_en"]}],
        }
    },
    "methods": {
        "soup": {"label": "Model Soups", "method": "linear"},
        "ties_tuned": {"label": "TIES (tuned)", "method": "ties", "tune": [{}, {}, {}]},
        "slerp": {"label": "SLERP", "method": "slerp", "best_of": False},
        "dam": {"label": "DAM", "method": "dam", "embeddings_and_norms": "base"},
    },
    "ablation": {
        "case": "case1",
        "seeds": [0, 1, 2],
        "objectives": {"kl": {"label": "KL"}, "mse": {"label": "MSE"}},
    },
}


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path, dict]:
    """Paths of a small configuration and its results folder, and the configuration."""
    write(tmp_path / "config.json", SMALL)
    fill(tmp_path / "results", SMALL)
    return tmp_path / "config.json", tmp_path / "results", json.loads(json.dumps(SMALL))


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Paths of the default configuration, in one world, and of results with made-up scores."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if name != "seeds"} | {"seed": 1}
    folder = tmp_path_factory.mktemp("full")
    write(folder / "config.json", config)
    fill(folder / "results", config)
    return folder / "config.json", folder / "results"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder that the real commands filled, with tiny models, one merge and no gate."""
    top = tmp_path_factory.mktemp("finished")
    results, world = top / "results", top / "results/case1"
    config = json.loads(json.dumps(SMALL)) | {"ablation": None}
    case = config["cases"]["case1"]
    case["columns"] = [
        {"label": "JComQA", "tasks": ["bottle_ja8/jcomqa"]},
        {"label": "Pair", "tasks": ["bottle_ja8/marc", "bottle_ja8/mgsm"]},
    ]
    config["methods"] = {"soup": config["methods"]["soup"]}
    case["experts"]["ja"]["domain"] = ["bottle_ja8/jcomqa"]
    write(results / "config.json", config)
    assert call("bottle.cli", ["tiny", str(top / "tiny")]) == 0
    for id in ("base", "ja", "math_a"):
        shutil.copytree(top / "tiny" / id, world / "models" / id)
    shutil.copytree(top / "tiny/data", world / "data")
    parents = [f"{id}={world}/models/{id}" for id in ("ja", "math_a")]
    made = ["--method", "linear", "--base", f"{world}/models/base", "--experts", *parents]
    assert call("merges.cli", [*made, "--out", f"{world}/merges/soup"]) == 0
    models = [f"{world}/models/{id}" for id in ("base", "ja", "math_a")]
    scored = ["--data", f"{world}/data", "--out-dir", f"{world}/scores/test", "--seed", "7"]
    scored += ["--suites", ",".join(tasks_of(case)), "--model", *models, f"{world}/merges/soup"]
    assert call("evaluation.cli", scored) == 0
    return results
