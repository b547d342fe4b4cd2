"""Measure how far a finished run's world is in the regime of published models.

    python benchmarks/world.py --results results/bottle --json docs/data/world.json \\
        --figure docs/figures/world-lines.png

For each case and world it records: whether the base is between chance and the expert on every task
that an expert is trained for, how far the experts are from the base, whether the loss rises on the
straight lines between models, what Model Soups keep of the experts, which untuned merges exceed the
best expert, and the composed held-out task; of all worlds together, how far merges are above
experts. Nothing is trained; it takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from checkpoints.names import kind  # noqa: E402
from checkpoints.reading import Checkpoint  # noqa: E402
from common.files import write_text  # noqa: E402
from common.worlds import folder_of, seeds_of  # noqa: E402
from report.experiment import Case, Model, searched  # noqa: E402
from report.lines import barrier  # noqa: E402
from report.load import load  # noqa: E402
from report.pairs import Of, Test, compared, weights_of  # noqa: E402

ROWS = 256  # calibration rows of each expert behind a loss
CLEAR = 3.0  # standard errors


def columns(case: Case) -> dict[str, Any]:
    """List tasks on which the base is not clear of chance, or the expert not of the base."""
    models = {model.id: model for model in case.models}
    margins = {}
    for expert, settings in case.experts.items():
        for task in settings["domain"]:
            base, learned = models["base"].tasks[task], models[expert].tasks[task]
            above = (base.value - base.chance) / base.stderr if base.stderr else math.inf
            error = math.hypot(base.stderr, learned.stderr)
            below = (learned.value - base.value) / error if error else math.inf
            margins[f"{expert} {task}"] = min(above, below)
    missed = sorted(name for name, margin in margins.items() if margin <= CLEAR)
    return {"tasks": len(margins), "not clear": missed}


def kept_at_home(case: Case) -> float:
    """Return the mean score of Model Soups on the experts' tasks over the experts' own."""
    models = {model.id: model for model in case.models}
    best: dict[str, float] = {}
    for expert, settings in case.experts.items():
        for task in settings["domain"]:
            best[task] = max(best.get(task, 0.0), models[expert].tasks[task].value)
    return sum(models["soup"].tasks[task].value for task in best) / sum(best.values())


def untuned(case: Case, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """List untuned merges whose average exceeds that of every single expert."""
    averages = {m.id: score.value for m in case.all_models if (score := case.average(m))}
    best = max(averages[expert] for expert in case.experts)
    rows = [row for row in averages if row in methods and not searched(methods[row])]
    above = sorted(row for row in rows if averages[row] > best)
    return {"best expert": best, "base": averages["base"], "above": above} | {
        row: averages[row] for row in ("soup", "dare_ties", "ties", "task_arithmetic")
    }


def composed(case: Case) -> dict[str, Any]:
    """Return the scores of base, experts, Model Soups and DAM on the held-out task."""
    (task,) = case.held_out()
    shown = ("base", *case.experts, "soup", "dam_paper", "dam_tuned")
    scores = {m.id: m.tasks[task] for m in case.models if m.id in shown}
    return {id: [score.value, score.stderr] for id, score in scores.items()}


def _tested(case: Case, row: Model, other: Model, of: Of, tasks: Mapping[str, float]) -> list:
    """Return how far a row is above another over all worlds, and the error, as tables test it."""
    merges = [model for model in case.all_models if model.kind == "merge" and model.id != row.id]
    found: Test = compared([row, *merges, other], row, of, tasks, other.id)[other.id]
    return [found.value, found.error]


def together(case: Case, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare rows over all worlds of a case: on the held-out task, and by the averages.

    Each is the difference and its standard error between worlds and items together.
    """
    models = {model.id: model for model in case.all_models}
    (task,) = case.held_out()
    averages = {id: score.value for id, model in models.items() if (score := case.average(model))}
    best = max(case.experts, key=averages.__getitem__)
    rows = [row for row in averages if row in methods and not searched(methods[row])]
    rows = sorted(rows, key=averages.__getitem__, reverse=True)
    above = [row for row in rows if averages[row] > averages[best]]
    return {
        "held out": {
            merge: {
                expert: _tested(
                    case, models[merge], models[expert], lambda m: m.tasks.get(task), {task: 1.0}
                )
                for expert in case.experts
            }
            for merge in ("soup", "dam_paper", "dam_tuned")
        },
        "best expert": [best, averages[best]],
        "untuned above it": {
            row: [
                averages[row],
                *_tested(case, models[row], models[best], case.average, weights_of(case.averaged)),
            ]
            for row in above
        },
    }


def weights(folder: Path) -> dict[str, Any]:
    """Load a model's weights as tensors by name."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def drift(base: Mapping[str, Any], expert: Mapping[str, Any]) -> float:
    """Return the norm of an expert's linear task vector over that of the base's linear weights."""
    names = [name for name in base if kind(name) not in ("embedding", "norm")]
    moved = sum(float((expert[name] - base[name]).square().sum()) for name in names)
    return math.sqrt(moved / sum(float(base[name].square().sum()) for name in names))


def lines(folder: Path, experts: Sequence[str]) -> dict[str, list[float]]:
    """Return the loss along the straight lines from the base to experts and between experts.

    A line's loss is the mean over its experts of that on their rows, nats a token of the answer.
    """
    from merges.lines import End, Losses

    base, *models = (Checkpoint(folder / "models" / name) for name in ("base", *experts))
    named = dict(zip(experts, models, strict=True))
    files = {name: folder / "data" / "calibration" / f"{name}.jsonl" for name in experts}
    losses = Losses(base, named, files, ROWS)
    ends = {name: End.of(model) for name, model in {"base": base, **named}.items()}
    found = {}
    for one, two in [*(("base", expert) for expert in experts), *combinations(experts, 2)]:
        measured = [name for name in (one, two) if name != "base"]
        line = losses.line(ends[one], ends[two], measured).values()
        found[f"{one} - {two}"] = [sum(at) / len(at) for at in zip(*line, strict=True)]
    return found


def draw(records: Mapping[str, Any], titles: Mapping[str, str], out: Path) -> None:
    """Draw the losses along all lines, a panel for each case, all worlds in one."""
    from matplotlib.figure import Figure

    from merges.lines import PLACES

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, (case, title) in zip(panels, titles.items(), strict=True):
        worlds = [record["lines"] for record in records.values() if record["case"] == case]
        for place, name in enumerate(worlds[0]):
            for world, found in enumerate(worlds):
                label = name if not world else None
                axes.plot(PLACES, found[name], color=f"C{place}", marker=".", lw=1, label=label)
        axes.set(title=title, xlabel="share of the second model", ylabel="loss, nats a token")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(out, dpi=150)


def main() -> None:
    """Parse the command line, measure every case and world, write the record and the figure."""
    # Long, because it names all that a record holds.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results/bottle"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    given = parser.parse_args()
    experiment = load(given.results / "config.json", given.results)
    seeds, records, over = seeds_of(experiment.config), {}, {}
    for case in experiment.cases:
        for seed, world in zip(seeds, case.each.values(), strict=True):
            folder = given.results / folder_of(case.id, seed, seeds)
            base = weights(folder / "models" / "base")
            models = {expert: weights(folder / "models" / expert) for expert in case.experts}
            found = lines(folder, list(case.experts))
            records[f"{case.id}, seed {seed}"] = record = {
                "case": case.id,
                "seed": seed,
                "columns": columns(world),
                "drift": {name: round(drift(base, model), 4) for name, model in models.items()},
                "soup at home": kept_at_home(world),
                "averages": untuned(world, experiment.config["methods"]),
                "held out": composed(world),
                "lines": found,
                "largest barrier": max(barrier(path) for path in found.values()),
            }
            print(f"{case.id}, seed {seed}:", json.dumps(record, ensure_ascii=False), flush=True)
        if case.several:
            name = f"{case.id}, all worlds"
            over[name] = together(case, experiment.config["methods"])
            print(f"{name}:", json.dumps(over[name], ensure_ascii=False), flush=True)
    if given.json:
        text = json.dumps(records | over, indent=1, ensure_ascii=False)
        write_text(given.json, text + "\n")
    if given.figure:
        draw(records, {case.id: case.title for case in experiment.cases}, given.figure)


if __name__ == "__main__":
    main()
