"""Measure where the CPU seconds of a DAM training step go, against the speed of matrix products.

    python benchmarks/dam_stages.py --json docs/data/dam-stages.json

Takes the models and rows of `benchmarks/dam.py` (a row of 873 tokens for three experts), one
thread. Every operation of a step, the backward's too, is timed as torch calls it and belongs to the
part of the project that called it; products of matrices and attention are apart. The step with the
least in all counts. The floor is what the layers' counted products take at the speed of one product
of a layer's shape, measured in the same process: a step that did nothing else, attention left out.
Timing each operation costs something, so that the step is also measured without it.

The teachers' states are compared with a plain forward of transformers over the same rows, each row
alone, so that nothing is padded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.clock import least, product_speed  # noqa: E402
from benchmarks.dam import SIZES, World  # noqa: E402
from benchmarks.merge import Records  # noqa: E402

WORLDS = (
    World("27M", dtype="float32", rows=8),
    World("27M", rows=8),
    World("0.27B", dtype="float32", rows=6),
    World("0.27B", rows=6),
)
MERGE, REDUCE, LOSS, UPDATE = "merge weights", "reduce to coefficients", "loss", "optimiser"
BODY, HEAD, ATTENTION = "products of the body", "products of the heads", "attention"
BETWEEN, REST = "norms, rotations, activations", "Python and autograd"
PARTS = (BODY, HEAD, ATTENTION, MERGE, REDUCE, LOSS, BETWEEN, UPDATE, REST)


def watch() -> Any:
    """Return a mode that times operations by part, with the FLOPs of its products."""
    # Only the processes that measure import torch; the class needs it to be defined.
    from torch.utils._python_dispatch import TorchDispatchMode

    from merges.dam import attention, head, layers

    class Parts(TorchDispatchMode):
        """Times operations by the part that calls them."""

        def __init__(self) -> None:
            super().__init__()
            self.within: list[str] = []
            self.spent, self.flops = dict.fromkeys(PARTS, 0.0), 0

        def of(self, owner: Any, name: str, part: str) -> None:
            """Let what a function calls from now on belong to a part."""
            function = getattr(owner, name)

            def inside(*args: Any, **kwargs: Any) -> Any:
                self.within.append(part)
                try:
                    return function(*args, **kwargs)
                finally:
                    self.within.pop()

            setattr(owner, name, staticmethod(inside) if isinstance(owner, type) else inside)

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name, part = function.__name__, self.within[-1] if self.within else BETWEEN
            if "scaled_dot_product" in name:
                part = ATTENTION
            elif name.split(".")[0] in ("mm", "addmm") and part != ATTENTION:
                left, right = args[-2:]
                self.flops += 2 * left.numel() * right.shape[-1]
                part = HEAD if part == LOSS else BODY
            began = time.thread_time()
            result = function(*args, **(kwargs or {}))
            self.spent[part] += time.thread_time() - began
            return result

    parts = Parts()
    parts.of(layers.MergedWeight, "forward", MERGE)
    parts.of(layers.MergedWeight, "backward", REDUCE)
    parts.of(head.OutputLoss, "forward", LOSS)
    parts.of(attention.StripAttention, "forward", ATTENTION)
    parts.of(attention.StripAttention, "backward", ATTENTION)
    return parts


def by_part(world: World, work: Path) -> dict[str, Any]:
    """Run steps in this process; return the parts' seconds, their floor and what was counted."""
    import torch

    from benchmarks import dam_variants

    torch.set_num_threads(1)
    dam_variants.prepare(world, work)
    trainer = dam_variants.trainer(world, work, "ours")
    trainer.step()
    # Half of the steps run untimed and say what a step takes; the others say what its parts take.
    counted, alone = trainer.counted["flops"], []
    for _ in range(1, world.rows // 2):
        began = time.process_time()
        trainer.step()
        alone.append(time.process_time() - began)
    flops = (trainer.counted["flops"] - counted) / len(alone)
    parts, found = watch(), []
    parts.of(trainer.optimizer, "step", UPDATE)
    for _ in range(world.rows // 2, world.rows):
        parts.spent, parts.flops = dict.fromkeys(PARTS, 0.0), 0
        began = time.process_time()
        with parts:
            trainer.step()
        spent = time.process_time() - began
        found.append(parts.spent | {REST: spent - sum(parts.spent.values()), "all": spent})
    _, hidden, intermediate, *_ = SIZES[world.size]
    return {
        "spent": min(found, key=lambda one: one["all"]),
        "alone": min(alone),
        "flops": parts.flops,
        "counted": flops,
        "speed": product_speed(3 * world.mean, hidden, intermediate, world.dtype),
    }


def teachers(world: World, work: Path) -> tuple[float, float]:
    """Return the CPU seconds of an expert's states on its rows, ours and transformers'."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks import dam_variants
    from checkpoints.reading import Checkpoint, Model
    from merges.dam.sources import load_sources
    from merges.dam.states import compute_states

    torch.set_num_threads(1)
    models: dict[str, Model] = {
        name: Checkpoint(path) for name, path in dam_variants.folders(world, work).items()
    }
    base, rows = models.pop("base"), dam_variants.row_files(world, work)
    sources = load_sources(base, models, rows)
    data = sources.calibrations[1]  # whose rows have the median of the lengths
    decoder = sources.decoder(sources.experts[data.expert])
    path, dtype = dam_variants.folders(world, work)[data.expert], getattr(torch, world.dtype)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    alone = [data.ids[data.starts[n] : data.starts[n + 1]][None] for n in range(len(data))]

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            states = [model.model(input_ids=ids, use_cache=False)[0][0] for ids in alone]
        return torch.cat(states)

    apart = (compute_states(decoder, data).float() - plain().float()).abs().max()
    assert apart < (0.2 if world.dtype == "bfloat16" else 1e-3), apart
    return least(lambda: compute_states(decoder, data), 5), least(plain, 5)


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/dam-benchmark"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    given.work.mkdir(parents=True, exist_ok=True)
    records, spawn = Records(), multiprocessing.get_context("spawn")
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    for world in WORLDS:
        label = f"{world.size}, {world.dtype}"
        with ProcessPoolExecutor(1, spawn) as pool:
            found = pool.submit(by_part, world, given.work).result()
        floor = found["flops"] / found["speed"]
        for part in PARTS:
            records.add(f"{label}: {part}", "CPU s", found["spent"][part], None)
        records.add(f"{label}: all, timed", "CPU s", found["spent"]["all"], None)
        records.add(f"{label}: all (other: products alone)", "CPU s", found["alone"], floor)
        counts = found["flops"] / 1e9, found["counted"] / 1e9
        records.add(f"{label}: products (other: counted by DAM)", "GFLOP", *counts)
        records.add(f"{label}: one product", "GFLOP/s", found["speed"] / 1e9, None)
        with ProcessPoolExecutor(1, spawn) as pool:
            ours, plain = pool.submit(teachers, world, given.work).result()
        records.add(f"{label}: teachers (other: plain forward)", "CPU s", ours, plain, 0.83)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
