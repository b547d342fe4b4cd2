"""Scoring five models: items per second against plain lm_eval, and where the time goes.

    python benchmarks/evaluation.py --json docs/data/evaluation.json
    python benchmarks/evaluation.py --items 20 --models 2 --size 64        # a quick look

Makes items with `python -m bottle data` and random models with its tokenizer, and scores them in
fresh processes, start-up included: with `python -m evaluation`, with lm_eval's own command and `hf`
model (a run for each model), and with lm_eval's simple_evaluate for all models in one process.
Every score, log-likelihood and answer has to be the same. A second set of items has solved examples
in front. Where vLLM is installed (here or in .venv-vllm), it does the same work. On a CPU the
seconds are CPU seconds, which other work on the machine does not change; on a GPU they are wall
seconds. `ratio` says how many times better ours is than the other; for the parts of the time, it is
the sum divided by the part. With `--real DATA` (made by `python -m evaluation data`) it also counts
what the published tasks' requests have in common (`prefixes.py`).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.answers import (  # noqa: E402
    CHOICES,
    SUITE,
    TASKS,
    WRITING,
    Answers,
    is_tie,
    our_answers,
    plain_answers,
    read_lines,
)
from benchmarks.clock import Clock, product_speed  # noqa: E402
from benchmarks.prefixes import count_common  # noqa: E402

SHOTS = 8
BATCH = 64
GOAL = 1.5
KINDS = {"short": "short prompts", "shots": f"{SHOTS} examples in front"}


def make_data(folder: Path, items: int) -> dict[str, Path]:
    """Write the items, plain and with solved examples in front; return both folders."""
    sizes = ["--test-items", str(items), "--dev-items", "40", "--train-rows", "2000"]
    command = [sys.executable, "-m", "bottle", "data", "--case", "case1", *sizes]
    command += ["--out", str(folder / "short")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    draw = random.Random(0)
    for task in TASKS:
        solved = [
            row["prompt"] + (row["target"] if "target" in row else row["choices"][row["gold"]])
            for row in read_lines(folder / f"short/dev/{task}.jsonl")
        ]
        path = folder / f"shots/test/{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_lines(folder / f"short/test/{task}.jsonl")
        for row in rows:
            row["prompt"] = "".join(draw.sample(solved, SHOTS)) + row["prompt"]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {name: folder / name for name in ("short", "shots")}


def make_models(folder: Path, tokenizer: Path, count: int, size: int) -> list[Path]:
    """Write random Mistral models of four layers; sizes that vLLM's CPU build takes."""
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    config = MistralConfig(
        vocab_size=len(tokens),
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=4,
        num_attention_heads=size // 32,
        num_key_value_heads=size // 32,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=None,
        initializer_range=0.1,  # predictions that differ from item to item
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(folder / f"m{seed}")
        MistralForCausalLM(config).save_pretrained(models[-1])
        tokens.save_pretrained(models[-1])
    return models


def write_plain_tasks(folder: Path, data: Path) -> Path:
    """Write the tasks as a user of lm_eval would, for the same items."""
    import yaml

    from evaluation.definitions import load_definition
    from evaluation.suites import load_suites

    folder.mkdir(parents=True)
    for task in (*CHOICES, *WRITING):
        files = {"test": str(data / f"test/{SUITE}/{task}.jsonl")}
        kind = {"output_type": "multiple_choice", "doc_to_choice": "choices"}
        target, metric = "gold", "acc"
        if task in WRITING:
            own = load_definition(load_suites()[SUITE].tasks[task])["generation_kwargs"]
            kind = {"output_type": "generate_until", "generation_kwargs": own}
            target, metric = "target", "exact_match"
        definition = {
            "task": f"plain_{task}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "doc_to_text": "prompt",
            "doc_to_target": target,
            "target_delimiter": "",
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(definition | kind))
    return folder


def seconds_of_children(device: str) -> float:
    """Return what finished processes took of the processor; on a GPU, the clock."""
    if device != "cpu":
        return time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: list[Any], home: Path, device: str) -> float:
    """Run a command offline; return its seconds."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment = os.environ | offline | {"HF_HOME": str(home / "huggingface")}
    start = seconds_of_children(device)
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:4]))} failed:\n{done.stderr[-3000:]}")
    return seconds_of_children(device) - start


def run_ours(
    python: Path | str, backend: str, data: Path, models: list[Path], out: Path, device: str
) -> tuple[float, Answers]:
    """Score the models with `python -m evaluation`."""
    command: list[Any] = [python, "-m", "evaluation", "--suites", ",".join(TASKS), "--data", data]
    command += ["--backend", backend, "--batch-size", BATCH, "--device", device, "--out-dir", out]
    for model in models:
        command += ["--model", model]
    return run(command, out.parent, device), our_answers(out, models)


def run_plain(tasks: Path, models: list[Path], out: Path, device: str) -> tuple[float, Answers]:
    """Score the models with lm_eval's command, a run for each."""
    seconds, answers = 0.0, Answers()
    for model in models:
        command: list[Any] = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
        command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", tasks]
        command += ["--tasks", ",".join(f"plain_{task}" for task in (*CHOICES, *WRITING))]
        command += ["--device", device, "--batch_size", BATCH, "--log_samples"]
        command += ["--output_path", out / model.name]
        seconds += run(command, out.parent, device)
        (found,) = (out / model.name).rglob("results_*.json")
        results = json.loads(found.read_text())
        results["samples"] = {
            f"plain_{task}": read_lines(next(found.parent.glob(f"samples_plain_{task}_*.jsonl")))
            for task in (*CHOICES, *WRITING)
        }
        answers |= plain_answers(results, model.name)
    return seconds, answers


def inside_plain(tasks: str, models: str, out: str, device: str) -> None:
    """Score the models with lm_eval's simple_evaluate; runs in a separate process."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks, include_defaults=False)
    answers = []
    for model in map(Path, models.split(",")):
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=[f"plain_{task}" for task in (*CHOICES, *WRITING)],
            task_manager=manager,
            batch_size=BATCH,
            device=device,
            bootstrap_iters=0,
        )
        answers += [[*key, *value] for key, value in plain_answers(results, model.name).items()]
    Path(out).write_text(json.dumps(answers))


def run_plain_at_once(
    tasks: Path, models: list[Path], out: Path, device: str
) -> tuple[float, Answers]:
    """Score the models with simple_evaluate in one process."""
    names = ",".join(map(str, models))
    seconds = run(
        [sys.executable, __file__, "--inside", "plain", tasks, names, out, device],
        out.parent,
        device,
    )
    rows = json.loads(out.read_text())
    return seconds, Answers({(model, task): (score, items) for model, task, score, items in rows})


def inside_where(data: str, models: str, out: str, device: str, backend: str) -> None:
    """Time the parts of our evaluation; runs in a separate process."""
    now = time.process_time if device == "cpu" else time.monotonic
    clock, begun = Clock(now), now()

    import transformers.models.mistral.modeling_mistral  # noqa: F401

    from checkpoints.reading import Checkpoint
    from evaluation import harness as harnesses
    from evaluation.backends import class_of, plain
    from evaluation.lm_task import LocalTask

    folders = list(map(Path, models.split(",")))
    # vLLM's module, or that of all models that hf serves without the quick class of small ones.
    module: Any = importlib.import_module(f"evaluation.backends.{backend}")
    kind: Any = class_of(backend, folders[0], "float32", device)
    clock.spent["imports"] = now() - begun
    parts = {"__init__": "reading models", "serve": "reading models"}
    parts |= {"_keep": "tokenising and arranging"}
    parts |= {"_score": "passes that score", "_write": "passes that write"}
    for watched in {kind, getattr(module, "HFBackend", kind)}:
        for method, name in parts.items():
            clock.watch(watched, method, name)
    clock.watch(LocalTask, "build_all_requests", "building requests")
    build = clock.counted(harnesses.Harness, "items and definitions")

    def harness() -> Any:
        chosen = {"batch_size": BATCH, "device": device, "backend": backend}
        return build(Path(data), TASKS, "test", folders[0], **chosen)

    first, tokens = harness(), 0
    for folder in folders:
        scores, _ = first.evaluate_folder(folder, folder.name)
        tokens += scores["counted"]["tokens"]
    clock.spent["the rest"] = now() - begun - sum(clock.spent.values())
    taken = dict(clock.spent)
    stored = Checkpoint(folders[0])
    linear = [stored.shape(n) for n in stored.names() if ".layers." in n and "proj" in n]
    outputs, columns = max(linear, key=math.prod)
    speed = product_speed(2048, columns, outputs, device=device, now=now)
    alone = 2 * tokens * sum(map(math.prod, linear)) / speed

    def again(harness: Any) -> tuple[int, float]:
        harness.evaluate_folder(folders[0], "warm")
        clock.spent["passes that score"] = 0.0
        scores, _ = harness.evaluate_folder(folders[0], "again")
        return scores["counted"]["tokens"], clock.spent["passes that score"]

    # Once more, and then without shared beginnings: every choice reads its full context, on hf
    # through transformers in batches ordered by length; on vLLM without its prefix cache.
    together = again(first)
    plain.serves = lambda *_: False
    if backend == "hf":
        module.HFBackend._takes_trees = lambda self: False
    module._LOGLIKELIHOODS = getattr(module, "_ANEW", None)
    apart = again(harness() if backend == "hf" else first)  # the first one kept its way
    pairs = {"tokens": (together[0], apart[0]), "seconds": (together[1], apart[1])}
    found = {"spent": taken, "together": pairs, "tokens": tokens, "products": alone}
    Path(out).write_text(json.dumps(found))


def pythons_with_vllm() -> Iterator[Path | str]:
    """Yield the interpreters that have vLLM."""
    if importlib.util.find_spec("vllm"):
        yield sys.executable
    elif (ROOT / ".venv-vllm/bin/python").exists():
        yield ROOT / ".venv-vllm/bin/python"


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    parser.add_argument("--items", type=int, default=200, metavar="N", help="a task (200)")
    parser.add_argument("--models", type=int, default=5, metavar="N", help="how many (5)")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="hidden size (128)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM out")
    parser.add_argument("--real", type=Path, metavar="DATA", help="published tasks' converted data")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside: Any = {"plain": inside_plain, "where": inside_where}
        inside[given.inside[0]](*given.inside[1:])
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    unit = "CPU seconds" if given.device == "cpu" else "seconds"
    rate = f"items per {unit.removesuffix('s')}"
    records = []

    # These functions are inside because they share the folder, the models and the records.
    def record(name: str, figure: str, ours: float, other: float, goal: float | None) -> None:
        better = ours / other if figure == rate else other / ours
        values = {"ours": round(ours, 3), "other": round(other, 3), "ratio": round(better, 2)}
        records.append({"name": name, "figure": figure, **values, "goal": goal})
        print(f"{name:<76} {figure:<20} {ours:10.2f} {other:10.2f} {better:6.1f} x", flush=True)

    def where(backend: str, python: Path | str, kind: str) -> None:
        """Record the parts of the time of one backend, and what shared beginnings save."""
        out = folder / f"{kind}-{backend}.json"
        inside = [data[kind], ",".join(map(str, models)), out, given.device, backend]
        run([python, __file__, "--inside", "where", *inside], folder, given.device)
        found = json.loads(out.read_text())
        total = sum(found["spent"].values())
        for part, seconds in sorted(found["spent"].items(), key=lambda pair: -pair[1]):
            record(f"{backend}, {KINDS[kind]}: {part} (other: all)", unit, seconds, total, None)
        passes = sum(found["spent"][f"passes that {what}"] for what in ("score", "write"))
        label = f"{backend}, {KINDS[kind]}: passes (other: products of their tokens alone)"
        record(label, unit, passes, found["products"], None)
        label = f"{backend}, {KINDS[kind]}: scoring one model (other: every choice alone)"
        for figure, kept in (("tokens read", "tokens"), (unit, "seconds")):
            together, alone = found["together"][kept]
            record(label, figure, together, alone, None)

    def tied(rows: Path, model: str, task: str, at: int, one: str, two: str) -> bool:
        """Return whether rounding decides between two answers to an item."""
        prompt = read_lines(rows / f"test/{SUITE}/{task}.jsonl")[at]["prompt"]
        return is_tie(folder / "models" / model, prompt, one, two)

    print(f"{platform.platform()}, {os.cpu_count()} cores, {given.device}")
    print(f"{'':<98} {'ours':>10} {'other':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder / "data", given.items)
        tokenizer = data["short"] / "tokenizer"
        models = make_models(folder / "models", tokenizer, given.models, given.size)
        for kind, what in KINDS.items():
            work = folder / kind
            tasks = write_plain_tasks(work / "tasks", data[kind])
            done = given.models * sum(
                len(read_lines(data[kind] / f"test/{task}.jsonl")) for task in TASKS
            )
            label = f"{given.models} models, {what}"
            at = (models, work / "ours", given.device)
            ours, answers = run_ours(sys.executable, "hf", data[kind], *at)
            for runner, title, goal in (
                (run_plain, "lm_eval, a run each", GOAL),
                (run_plain_at_once, "simple_evaluate, one process", None),
            ):
                seconds, theirs = runner(tasks, models, work / f"{runner.__name__}", given.device)
                ties = answers.check(theirs, functools.partial(tied, data[kind]))
                if ties:
                    print(f"{ties} texts part where two tokens are equal but for rounding")
                record(f"{label} (other: {title})", rate, done / ours, done / seconds, goal)
            where("hf", sys.executable, kind)
            for python in () if given.no_vllm else pythons_with_vllm():
                at = (models, work / "vllm", given.device)
                seconds, _ = run_ours(python, "vllm", data[kind], *at)
                label = f"{given.models} models, {what}, vLLM (other: hf)"
                record(label, rate, done / seconds, done / ours, None)
                where("vllm", python, kind)
        if given.real:
            for task, alone, item, every in count_common(given.real, tokenizer):
                for share, count in (("of an item", item), ("of all items", every)):
                    name = f"{task}, requests {share} share their beginning (other: alone)"
                    record(name, "characters read", count, alone, None)
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
