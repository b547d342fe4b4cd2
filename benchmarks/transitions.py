"""Measure when a training learns each of its tasks, and how many steps follow.

    python benchmarks/transitions.py --results results/bottle --role case1/base \\
        --json docs/data/transitions.json --figure docs/figures/transitions.png

A skill such as copying a word comes within some hundred steps. If a training ends there, its seed
or its processor decides a column of the tables. So each role is trained again on the data of a
finished run, once for each world. Every hundred steps it answers rows of the dev split that it
should know: the share whose answer is right to the last token, with the answer so far given. A
task's transition is the first step from which this share stays above nine tenths of its last
value. A base takes about 75 CPU seconds, an expert about 40.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bottle.cases import BASE, get_case  # noqa: E402
from bottle.data import training_row  # noqa: E402
from bottle.samples import Knowledge, Part, draw_from  # noqa: E402
from common.files import read_json, read_jsonl, write_text  # noqa: E402
from common.worlds import folder_of, seeds_of  # noqa: E402

EVERY = 100  # steps between two measurements
ROWS = 100  # of each task: a standard error of at most .05
NEAR = 0.9  # of the last value


def probes(parts: Sequence[Part], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Draw rows by task that a role should know and was not trained on.

    Args:
        parts: The role's mixture. Its plain text and tasks of which it knows nothing are left out.
        seed: Seed of the draws.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for number, part in enumerate(parts):
        draw = random.Random(f"transitions {seed} {number}")
        rows: list[dict[str, Any]] = []
        sample = part.generate(draw, Knowledge(part.knows))
        if not part.knows or not sample.content or sample.task in found:
            continue
        while len(rows) < ROWS:
            sample = draw_from(part.generate, draw, "dev", Knowledge(part.knows))
            if sample.known:
                rows.append(training_row(sample))
        found[sample.task] = rows
    return found


def right(model: Any, rows: Sequence[dict[str, Any]], tokenizer: Any) -> float:
    """Return the share of rows of which the model predicts every token of the answer."""
    import torch

    from bottle.training import tokenise

    texts = tokenise(rows, tokenizer)
    length = max(len(text.ids) for text in texts)
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    answer = torch.zeros(len(texts), length - 1, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        answer[row, text.prompt_length - 1 : len(text.ids) - 1] = True
    with torch.no_grad():
        found = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
    return float((~((found != ids[:, 1:]) & answer).any(1)).float().mean())


def transition(shares: Mapping[int, float]) -> int:
    """Return the first step from which a share stays above nine tenths of its last value."""
    steps = sorted(shares)
    late = [step for step in steps if shares[step] < NEAR * shares[steps[-1]]]
    return min(step for step in steps if not late or step > late[-1])


def measure(folder: Path, case: str, role: str, settings: Mapping[str, Any], seed: int) -> dict:
    """Train a role again and measure it every hundred steps.

    Args:
        folder: The case's folder of a finished run, with data and, for an expert, its base.
        case: Name of the bottle's case.
        role: The role.
        settings: The case of the run's configuration.
        seed: The world's seed.

    Returns:
        By task, the share of right answers by steps.
    """
    import torch

    from bottle.tokenizer import load_tokenizer
    from bottle.training import Shape, build_model, fit, recipe_of, tokenise
    from checkpoints.loading import load_causal

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder / "data" / "tokenizer")
    rows = probes(get_case(case).mixtures(settings["drift"])[role], seed)
    if role == BASE:
        recipe = recipe_of(role, **settings["base"]["train"])
        shape = Shape(**settings["model"])
        model = build_model(shape, tokenizer.get_vocab_size(), seed)
    else:
        recipe = recipe_of(role, **settings["experts"][role]["train"])
        model = load_causal(folder / "models" / "base", dtype="float32")
    shares: dict[str, dict[int, float]] = {task: {} for task in rows}

    def watch(step: int) -> None:
        if step % EVERY == 0 or step == recipe.steps:
            for task, asked in rows.items():
                shares[task][step] = right(model, asked, tokenizer)

    watch(0)
    # The order of the project's own training, so that the last model is the run's.
    order = random.Random(f"{case} {role} {seed}").getrandbits(32)
    texts = tokenise(read_jsonl(folder / "data" / "train" / f"{role}.jsonl"), tokenizer)
    fit(model, texts, recipe, order, f"{case}/{role}, seed {seed}", watch=watch)
    return shares


def draw(records: Mapping[str, Any], out: Path) -> None:
    """Draw the shares against steps: a panel for each role, a line for each task and world."""
    from matplotlib.figure import Figure

    roles = sorted({record["role"] for record in records.values()})
    figure = Figure(figsize=(5 * len(roles), 4), layout="constrained")
    panels = figure.subplots(1, len(roles), squeeze=False, sharey=True)[0]
    for axes, role in zip(panels, roles, strict=True):
        worlds = [record["shares"] for record in records.values() if record["role"] == role]
        for place, task in enumerate(worlds[0]):
            for number, shares in enumerate(worlds):
                points = sorted(shares[task].items())
                label = None if number else task
                axes.plot(*zip(*points, strict=True), color=f"C{place}", lw=1, label=label)
        axes.set(title=role, xlabel="steps", ylabel="share of right answers", ylim=(0, 1.02))
        axes.legend(fontsize="x-small", frameon=False, ncols=2)
    figure.savefig(out, dpi=150)


def main() -> None:
    """Parse the command line, measure every role and world, write the record and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results/bottle"), metavar="DIR")
    parser.add_argument(
        "--role", action="append", required=True, metavar="CASE/ROLE", help="may be given again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    given = parser.parse_args()
    config = read_json(given.results / "config.json")
    seeds, records = seeds_of(config), {}
    for case, role in (name.split("/") for name in given.role):
        settings = config["cases"][case]
        for seed in seeds:
            folder = given.results / folder_of(case, seed, seeds)
            shares = measure(folder, settings["world"], role, settings, seed)
            steps = {task: transition(found) for task, found in shares.items()}
            records[f"{case}/{role}, seed {seed}"] = {
                "role": f"{case}/{role}",
                "seed": seed,
                "transitions": steps,
                "shares": shares,
            }
            print(f"{case}/{role}, seed {seed}:", json.dumps(steps), flush=True)
    if given.json:
        write_text(given.json, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    if given.figure:
        draw(records, given.figure)


if __name__ == "__main__":
    main()
