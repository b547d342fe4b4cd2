"""Measure what alignment does for two models without a common base, of a finished run.

    python benchmarks/strangers.py --results results/strangers --json docs/data/strangers.json \\
        --figure docs/figures/strangers-lines.png
    python benchmarks/strangers.py --assignment 4096 8192

It records the loss on the straight line between the two experts, as they are and after each kind of
alignment, and in how many of 20 draws weight matching undoes a random disguise of the second expert
to the bit. Nothing is trained; it takes about two minutes. With --assignment it measures the time
and memory of one assignment of so many units: random rows against the same rows in another order
with as much noise.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.files import write_text  # noqa: E402
from merges.alignment.aligning import METHODS  # noqa: E402

EXPERTS = ("ja", "math_a")
PLACES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
DRAWS = 20


def lines(case: Path) -> dict[str, Any]:
    """Return by alignment the cosine of weights and each expert's loss along the line."""
    import torch

    from benchmarks.world import ROWS
    from checkpoints.reading import Checkpoint
    from merges.alignment.aligning import align_models
    from merges.lines import End, Losses

    base = Checkpoint(case / "models" / "base")
    experts = {name: Checkpoint(case / "models" / name) for name in EXPERTS}
    calibration = {name: case / "data" / "calibration" / f"{name}.jsonl" for name in EXPERTS}
    losses = Losses(base, experts, calibration, ROWS)
    found = {}
    for method in ("none", *METHODS):
        moved: Mapping[str, Any] = experts
        if method != "none":
            rows = list(calibration.values()) if method.startswith("activation") else []
            moved = align_models(base, experts, method, rows).experts
        one, two = (moved[name].state_dict() for name in EXPERTS)
        flat = [torch.cat([own.flatten().double() for own in x.values()]) for x in (one, two)]
        path: dict[str, list[float]] = {name: [] for name in EXPERTS}
        for t in PLACES:
            for name, loss in losses.between(End(one), End(two), t, EXPERTS).items():
                path[name].append(loss)
        cosine = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
        found[method] = {"cosine": cosine, "loss": path}
        print(f"{method}: cosine {cosine:.3f}, loss at one half", end=" ")
        print({name: round(own[len(PLACES) // 2], 3) for name, own in path.items()}, flush=True)
    return found


def undone(case: Path) -> int:
    """Return in how many draws a disguise of the second expert is undone to the bit."""
    import torch

    from checkpoints.reading import Checkpoint
    from merges.alignment import moves, weights
    from merges.alignment.cli import PLACES as PARTS
    from merges.alignment.groups import group_of
    from merges.alignment.moved import Moved

    model = Checkpoint(case / "models" / EXPERTS[1])
    group = group_of(model.config, model.names(), model.path)
    right = 0
    for seed in range(DRAWS):
        element = moves.draw(group, torch.Generator().manual_seed(seed), PARTS)
        disguised = Moved(model, group, element)
        found = weights.match(group, model, disguised, False, "matching")
        back = Moved(disguised, group, found.element)
        right += all(torch.equal(back.load(name), model.load(name)) for name in model.names())
    return right


def assignment(units: int) -> dict[str, Any]:
    """Return what an assignment of so many units takes: planted, and of noise alone."""
    import torch

    from merges.alignment.solving import assign

    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(units, 512, generator=draw)
    order = torch.randperm(units, generator=draw)
    noisy = rows + torch.randn(units, 512, generator=draw)
    start = time.process_time()
    found = assign((rows @ noisy[order].T).double())
    planted = time.process_time() - start
    right = int((order[found] == torch.arange(units)).sum())
    strange = torch.randn(units, 512, generator=draw)
    start = time.process_time()
    assign((rows @ strange.T).double())
    alone = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes
    return {
        "units": units,
        "planted, CPU s": round(planted, 2),
        "planted, right": right,
        "noise alone, CPU s": round(alone, 2),
        "peak GB": round(peak, 2),
    }


def draw(found: Mapping[str, Any], out: Path) -> None:
    """Draw the mean loss of both experts' rows along the line, a curve for each alignment."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(EXPERTS), sharey=True), EXPERTS, strict=True):
        for place, (method, own) in enumerate(found.items()):
            label = "as they are" if method == "none" else method
            axes.plot(PLACES, own["loss"][name], color=f"C{place}", marker=".", label=label)
        axes.set(title=f"rows of {name}", xlabel="share of the mathematics expert")
    figure.axes[0].set_ylim(bottom=0)  # of both, once both are drawn
    figure.axes[0].set_ylabel("loss, nats a token of the answer")
    figure.axes[1].legend(fontsize="small", frameon=False)
    figure.savefig(out, dpi=150)


def main() -> None:
    """Parse the command line, measure, write the record and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results/strangers"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    parser.add_argument("--assignment", type=int, nargs="*", default=[], metavar="N")
    given = parser.parse_args()
    if given.assignment:
        for units in given.assignment:
            print(json.dumps(assignment(units)), flush=True)
        return
    case = given.results / "case1"
    found = lines(case)
    record = {"undone to the bit": [undone(case), DRAWS], "lines": found}
    print("undone to the bit:", record["undone to the bit"])
    if given.json:
        write_text(given.json, json.dumps(record, indent=1) + "\n")
    if given.figure:
        draw(found, given.figure)


if __name__ == "__main__":
    main()
