"""Compare the bytes of every kind of step between processors, real, capped and emulated.

    python benchmarks/processors.py --emulate Haswell --json docs/data/processors.json

A tiny world is made once, with portable numerics. Then every variant runs the same steps, each on
the same inputs, so that a difference in one step does not pass to the next. The table says whose
outputs equal the first variant's of the same numerics, and with `--against RECORD` whose equal
those that another machine wrote into its record. An emulated processor needs qemu-x86_64 (Debian:
qemu-user) and takes 25 to 60 times as long.

    python benchmarks/processors.py --price --json docs/data/processors-price.json

compares the CPU seconds of longer steps under portable and fast numerics, in turns.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import numerics  # noqa: E402
from common.calling import call  # noqa: E402
from common.machine import describe  # noqa: E402
from common.warm import PRELOAD  # noqa: E402

EXPERTS = ("ja", "math_a")
# Training steps, rows that DAM learns from, items a task: few for equal bytes, more for the price.
FEW, MORE = (4, 16, 6), (80, 480, 60)
PRICED = (
    *("training: base", "scoring", "search: parameter space"),
    *(f"merge: {name}" for name in ("dam", "linear", "ties", "dare_ties", "tsv_m", "iso_c")),
)
TASKS = "bottle_ja8/jcomqa,bottle_ja8/xlsum,bottle_gsm_en"
# What a library may use, capped, which stands in for another processor.
CAPS = {
    "AVX2 at most": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "ATen without AVX": {"ATEN_CPU_CAPABILITY": "default"},
    "numba without AVX and FMA": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},
    "numba for Haswell": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    "OpenBLAS for Nehalem": {"OPENBLAS_CORETYPE": "Nehalem"},
    "numpy without AVX2": {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"},
}


def digest(path: Path) -> str:
    """Hash an output: a file's bytes, or the names and bytes of a folder's weights and records."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    kept = [
        file
        for file in files
        if file.is_file() and "cost" not in file.name and file.name != "manifest.json"
    ]
    total = hashlib.sha256()
    for file in kept:
        content = file.read_bytes()
        # Two builds of zlib may compress the same text to other bytes.
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        total.update(file.name.encode() + hashlib.sha256(content).digest())
    return total.hexdigest()[:12]


def steps(
    world: Path, out: Path, sizes: tuple[int, int, int]
) -> Iterator[tuple[str, str, list[str], Path]]:
    """Yield every step: its name, module, arguments and the output that counts."""
    # Long, because it is the list of all commands.
    data, models = world / "data", world / "models"
    count, samples, items = map(str, sizes)
    train = ["train", "--case", "case1", "--data", str(data), "--steps", count, "--seed", "1"]
    few = ["--test-items", items, "--dev-items", items, "--train-rows", str(50 * sizes[0])]
    few += ["--calibration-rows", str(3 * sizes[1] // 2), "--seed", "1"]
    yield (
        "data",
        "bottle.cli",
        ["data", "--case", "case1", *few, "--out", f"{out}/data"],
        out / "data",
    )
    base = ["--role", "base", "--out", f"{out}/base"]
    yield "training: base", "bottle.cli", [*train, *base], out / "base/model.safetensors"
    for name in EXPERTS:
        expert = ["--role", name, "--init", f"{models}/base", "--out", f"{out}/{name}"]
        where = out / name / "model.safetensors"
        yield f"training: {name}", "bottle.cli", [*train, *expert], where
    pairs = [f"{name}={models / name}" for name in EXPERTS]
    given = ["--base", f"{models}/base", "--seed", "1", "--experts", *pairs]
    rows = [f"{name}={data}/calibration/{name}.jsonl" for name in EXPERTS]
    from merges.engine import registry

    kinds = sorted(
        {kind for m in registry.describe() for kind in registry.info(m).statistics.values()}
    )
    for kind, name in itertools.product(kinds, ("base", *EXPERTS)):
        whose = name if name in EXPERTS else EXPERTS[0]
        command = [
            "statistics",
            "--model",
            f"{models}/{name}",
            "--collect",
            kind,
            "--rows",
            samples,
        ]
        command += ["--calibration", f"{data}/calibration/{whose}.jsonl"]
        found = out / "statistics" / kind / name
        yield f"statistics: {kind} of {name}", "merges.cli", [*command, "--out", str(found)], found

    variants: list[tuple[str, list[str]]] = [(method, []) for method in registry.describe()]
    variants += [(method, ["svd=exact"]) for method in ("tsv_m", "iso_c")]
    for method, chosen in variants:
        info = registry.info(method)
        needs = info.needs
        # How the parameter is called that says how many rows a method sees.
        size = "samples" if "samples" in info.parameters else "rows"
        values = [f"{size}={samples}", *chosen] if "data" in needs else chosen
        if method == "dam":
            values = [*values, "batch_size=4"]
        merged = out / "merges" / "-".join([method, *chosen])
        taken = given[:-1] if info.experts == 1 else given
        command = ["--method", method, *taken, "--out", str(merged)]
        for whose, kind in info.statistics.items():
            of = ["base"] if whose == "base" else EXPERTS
            folder = world / "statistics" / kind
            command += ["--statistics", *(f"{name}={folder / name}" for name in of)]
        command += ["--set", *values] if values else []
        command += ["--calibration", *rows] if "data" in needs else []
        name = " ".join(["merge:", method, *chosen])
        yield name, "merges.cli", command, merged / "model.safetensors"
    score = ["--suites", TASKS, "--data", str(data), "--out", f"{out}/scores.json"]
    command = ["--model", f"{models}/ja", *score]
    yield "scoring", "evaluation.cli", command, out / "scores.items.jsonl.gz"
    search = [*given, "--data", str(data), "--suites", "bottle_ja8/jcomqa"]
    for space in (["parameter", "--method", "task_arithmetic"], ["data-flow"]):
        found = out / f"search-{space[0]}"
        command = ["evolve", "--space", *space, *search, "--budget", "6", "--population", "3"]
        command += ["--out", str(found)]
        yield f"search: {space[0]} space", "search.cli", command, found / "model.safetensors"


def run_steps(world: Path, out: Path, price: bool) -> dict[str, list]:
    """Run all steps in this process, or those of the price; return digest and CPU seconds."""
    for module in PRELOAD if price else ():
        importlib.import_module(module)
    done = {}
    for name, module, arguments, output in steps(world, out, MORE if price else FEW):
        if price and name not in PRICED:
            continue
        start = time.process_time()
        code = call(module, arguments)
        cpu = round(time.process_time() - start, 2)
        done[name] = [digest(output) if code == 0 else f"failed ({code})", cpu]
        print(f"{name:<32} {done[name][0]} {cpu:8.2f} s", file=sys.stderr, flush=True)
    return done


def variants(emulated: list[str]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield every variant: its name, the words before the command, and its variables."""
    for setting in (numerics.PORTABLE, numerics.FAST):
        values = numerics.environment(setting)
        yield f"{setting}, this processor", [], values
        for name in emulated:
            yield f"{setting}, {name} (emulated)", ["qemu-x86_64", "-cpu", name], values
        for name, cap in CAPS.items():
            if setting == numerics.FAST:
                yield f"{setting}, {name}", [], values | cap


def run_variant(
    world: Path, before: list[str], values: dict[str, str], price: bool = False, make: bool = False
) -> dict[str, list]:
    """Run all steps in a process of a variant, in a folder that is removed afterwards.

    With `make`, that process makes the world instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*before, sys.executable, __file__, "--world", str(world)]
        command += [] if make else ["--out", folder]
        command += ["--price"] if price else []
        done = subprocess.run(
            command,
            # One thread each, and no kernels that another variant compiled.
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": f"{folder}/numba"}
            | {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
            | values,
            stdout=subprocess.PIPE,
            check=True,
        )
        # The steps print their own lines first.
        return json.loads(done.stdout.splitlines()[-1])


def make_world(folder: Path, price: bool) -> None:
    """Make the inputs that all variants share: data, a base and experts of a few steps."""
    for name, module, arguments, output in steps(folder, folder / "made", MORE if price else FEW):
        if name == "data":
            call(module, arguments)
            output.rename(folder / "data")
        elif name.startswith("training"):
            call(module, arguments)
            (folder / "models").mkdir(exist_ok=True)
            output.parent.rename(folder / "models" / output.parent.name)
        elif name.startswith("statistics") and not price:
            call(module, arguments)
            (folder / "statistics" / output.parent.name).mkdir(parents=True, exist_ok=True)
            output.rename(folder / "statistics" / output.parent.name / output.name)
    shutil.rmtree(folder / "made", ignore_errors=True)


def compare_bytes(world: Path, emulated: list[str], record: dict[str, dict]) -> dict[str, dict]:
    """Run every variant; print which steps differ from the first of the same numerics.

    Args:
        world: The inputs.
        emulated: Names of processors for qemu.
        record: What another machine found, by variant; empty for no comparison with it.
    """
    found: dict[str, dict] = {}
    for name, before, values in variants(emulated):
        print(name, file=sys.stderr, flush=True)
        done = found[name] = run_variant(world, before, values)
        first = found[f"{name.partition(',')[0]}, this processor"]
        other = [step for step, (value, _) in done.items() if value != first[step][0]]
        print(f"{name}: {len(done) - len(other)} of {len(done)} equal; other: {other}", flush=True)
        for kind, theirs in record.items():
            both = [step for step in done if step in theirs]
            other = [step for step in both if done[step][0] != theirs[step][0]]
            print(f"  {len(both) - len(other)} of {len(both)} as there, {kind}; other: {other}")
    return found


def compare_price(world: Path, repeats: int) -> dict[str, dict]:
    """Run the priced steps under both numerics, in turns; print the medians of CPU seconds."""
    taken: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for setting in (numerics.FAST, numerics.PORTABLE):
            for step, (_, cpu) in run_variant(
                world, [], numerics.environment(setting), price=True
            ).items():
                taken.setdefault(step, {}).setdefault(setting, []).append(cpu)
    for step, cpu in taken.items():
        fast, portable = (
            statistics.median(cpu[name]) for name in (numerics.FAST, numerics.PORTABLE)
        )
        print(f"{step:<32} fast {fast:7.2f}  portable {portable:7.2f}  {portable / fast:5.2f}")
    return taken


def main() -> None:
    """Compare bytes or price, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulate", nargs="*", default=[], metavar="CPU", help="qemu's names")
    parser.add_argument("--price", action="store_true", help="compare CPU seconds instead")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of the price (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    parser.add_argument("--against", type=Path, metavar="FILE", help="another machine's record")
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.world:
        done = {}
        if given.out:
            done = run_steps(given.world, given.out, given.price)
        else:
            make_world(given.world, given.price)
        print("\n" + json.dumps(done))
        return
    against = json.loads(given.against.read_text()) if given.against else {"steps": {}}
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        run_variant(world, [], numerics.environment(numerics.PORTABLE), given.price, make=True)
        if given.price:
            found = compare_price(world, given.repeats)
        else:
            found = compare_bytes(world, given.emulate, against["steps"])
    if given.json:
        record = {"machine": describe(), "steps": found}
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
