"""One variant of a DAM training step in a separate process, for `benchmarks/dam.py`.

python benchmarks/dam_variants.py VARIANT WORK WORLD [GRADIENTS]
"""

from __future__ import annotations

import json
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from transformers import AutoTokenizer  # noqa: E402

from benchmarks.dam import AUTHORS, CONTEXT, SIZES, World  # noqa: E402
from benchmarks.dam_authors import (  # noqa: E402
    LEARNING_RATE,
    WEIGHT_DECAY,
    AuthorsTrainer,
    load_models,
)
from checkpoints.reading import Checkpoint, Model  # noqa: E402
from checkpoints.writing import write_weights  # noqa: E402
from merges.dam import layers, network, training  # noqa: E402
from merges.dam.architecture import skeleton  # noqa: E402
from merges.dam.data import draw, read_calibration  # noqa: E402
from merges.dam.method import training_parameters  # noqa: E402
from merges.dam.packing import Packing  # noqa: E402
from merges.dam.sources import load_sources  # noqa: E402
from merges.dam.states import write_teachers  # noqa: E402
from merges.engine.requests import WholeModelRequest  # noqa: E402

SIGMA = 0.788  # of the logarithm of lengths, as in the paper's data
SHORTEST = 16
DISTANCE = 0.2  # of an expert's weights from the base's, relative

Step = Callable[[int], float]
Gradients = Callable[[], dict[str, Tensor]]


def folders(world: World, work: Path) -> dict[str, Path]:
    """Return the models' folders, ``base`` first."""
    names = ["base", *(f"e{number}" for number in range(world.experts))]
    return {name: work / f"{world.size}-{world.dtype}" / name for name in names}


def row_files(world: World, work: Path) -> dict[str, Path]:
    """Return each expert's file of rows."""
    folder = work / f"{world.size}-rows-{world.experts}-{world.mean}-{world.rows}"
    return {f"e{number}": folder / f"e{number}.jsonl" for number in range(world.experts)}


def teachers(world: World, work: Path) -> Path:
    """Return the folder of cached teacher states."""
    return work / f"{world.size}-{world.dtype}-teachers-{world.experts}-{world.mean}-{world.rows}"


def config(world: World) -> dict[str, Any]:
    """Return the models' config.json."""
    vocabulary, hidden, intermediate, depth, heads, kv_heads = SIZES[world.size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "dtype": world.dtype,
    }


def make_models(world: World, work: Path) -> None:
    """Make a base and experts near to it, those that are not there yet."""
    about = config(world)
    words = {"<unk>": 0} | {f"w{number}": number for number in range(1, about["vocab_size"])}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    for number, folder in enumerate(folders(world, work).values()):
        if (folder / "config.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for index, (name, like) in enumerate(skeleton(about).state_dict().items()):
            common, own = torch.Generator(), torch.Generator()
            common.manual_seed(index)
            own.manual_seed(1000 * number + index)
            norm = like.dim() == 1
            spread = 0.05 if norm else like.shape[1] ** -0.5
            values = spread * torch.randn(like.shape, generator=common) + norm
            if number:
                values += DISTANCE * spread * torch.randn(like.shape, generator=own)
            tensors[name] = values.to(getattr(torch, world.dtype))
        write_weights(folder, tensors)
        (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "model": model}))
        (folder / "tokenizer_config.json").write_text(json.dumps(kind))
        (folder / "config.json").write_text(json.dumps(about))


def make_rows(world: World, work: Path) -> None:
    """Write rows of which each is typical: its samples' lengths are the distribution's quantiles.

    They are scaled to the mean wanted, so that all steps are alike and few are enough.
    """
    normal = statistics.NormalDist()
    places = [(number + 0.5) / world.experts for number in range(world.experts)]
    quantiles = [math.exp(SIGMA * normal.inv_cdf(place)) for place in places]
    scale = world.mean / statistics.mean(quantiles)
    pairs = zip(row_files(world, work).values(), quantiles, strict=True)
    for number, (path, quantile) in enumerate(pairs):
        draws = random.Random(number)
        length = min(max(round(scale * quantile), SHORTEST), CONTEXT)
        lines = []
        for _ in range(world.rows):
            words = [f"w{draws.randrange(1, SIZES[world.size][0])}" for _ in range(length)]
            prompt, answer = " ".join(words[: length // 2]), " ".join(words[length // 2 :])
            lines.append(json.dumps({"prompt": prompt, "answer": f" {answer}", "eos": False}))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepare(world: World, work: Path) -> None:
    """Make models, rows and cached teacher states."""
    make_models(world, work)
    make_rows(world, work)
    models = {name: Checkpoint(path) for name, path in folders(world, work).items()}
    write_teachers(models.pop("base"), models, row_files(world, work), teachers(world, work))


def _padded_states(decoder: network.Decoder, ids: Tensor, packing: Packing) -> Tensor:
    """Final hidden states as `Decoder.hidden_states` gives them, every sample padded on the way."""
    samples = [F.pad(own, (0, CONTEXT - len(own))) for own in ids.split(list(packing.lengths))]
    padded = Packing([CONTEXT] * len(samples))
    states = _hidden_states(decoder, torch.cat(samples), padded).split(CONTEXT)
    pairs = zip(states, packing.lengths, strict=True)
    return torch.cat([own[:length] for own, length in pairs])


def _plain_merged_weight(layer: layers.MergedLayer) -> Tensor:
    """The merged weight by ordinary autograd, which keeps what it needs of every product."""
    pairs = zip(layer.coefficients, layer.weights, strict=True)
    first, *others = (coefficient * weight for coefficient, weight in pairs)
    return sum(others, first).to(layer.weights[0].dtype)


def _plain_output_loss(hidden: Tensor, head: Any, segments: Sequence[Any], objective: Any) -> Any:
    """Do what `merges.dam.head.output_loss` does for the term kl alone.

    Ordinary autograd goes from the logits of all tokens at once.
    """
    temperature, total = objective.temperature, hidden.new_zeros((), dtype=torch.float32)
    logits = head.logits(hidden)
    for segment in segments:
        if segment.stop > segment.start:
            expected = segment.head.logits(segment.hidden)
            log_p = F.log_softmax(logits[segment.start : segment.stop] / temperature, -1)
            q = F.softmax(expected / temperature, -1)
            tokens = segment.count or segment.stop - segment.start
            total = total + F.kl_div(log_p, q, reduction="sum") * temperature**2 / tokens
    return total, total.detach()[None]


_hidden_states = network.Decoder.hidden_states


_PLAIN: dict[str, tuple[Any, str, Any]] = {
    "packing": (network.Decoder, "hidden_states", _padded_states),
    "own merged weight": (layers.MergedLayer, "merged_weight", _plain_merged_weight),
    "own output loss": (training, "output_loss", _plain_output_loss),
}


def switch_off(measure: str) -> None:
    """Replace a part of ours, in this process, by its plain version; see `MEASURES`."""
    if measure in _PLAIN:
        setattr(*_PLAIN[measure])


def trainer(world: World, work: Path, variant: str) -> training.Trainer:
    """Return the project's trainer."""
    models: dict[str, Model] = {k: Checkpoint(path) for k, path in folders(world, work).items()}
    without = variant.removeprefix("without ")
    request = WholeModelRequest(
        base=models.pop("base"),
        experts=models,
        calibration=row_files(world, work),
        teachers=None if without == "cached teachers" else teachers(world, work),
        seed=0,
        embeddings_and_norms="base",
        threads=1,
    )
    parameters = training_parameters(
        samples=world.rows,
        learning_rate=LEARNING_RATE,
        optimizer="mofo",
        weight_decay=WEIGHT_DECAY,
        transform="tanh",
        unmerged="tanh_mean",
        last_position=True,
        tokens_per_forward=int(without == "one forward"),
        recompute_activations=variant == "recomputing activations",
    )
    sources = load_sources(request.base, request.experts, request.calibration)
    switch_off(without)
    return training.Trainer(request, parameters, sources)


def ours(world: World, work: Path, variant: str) -> tuple[Step, Gradients]:
    """Return the project's step, and its last gradients."""
    own = trainer(world, work, variant)
    coefficients = own.coefficients
    return lambda _: own.step(), lambda: coefficients.named(coefficients.flat.grad)


def authors(world: World, work: Path, length: int) -> tuple[Step, Gradients]:
    """Return the authors' step on the same rows, and its last gradients."""
    base, *experts = folders(world, work).values()
    tokenizer = AutoTokenizer.from_pretrained(base)
    files = row_files(world, work).items()
    data = [read_calibration(name, path, tokenizer, CONTEXT) for name, path in files]
    drawn = draw(data, world.rows, 1, seed=0)
    trainer = AuthorsTrainer(load_models(experts))

    def step(number: int) -> float:
        places = [(own, rows[number]) for own, rows in zip(data, drawn, strict=True)]
        samples = [own.ids[own.starts[row] : own.starts[row + 1]] for own, row in places]
        return trainer.step(samples, length)

    return step, trainer.gradients


def main(variant: str, folder: str, description: str, gradients: str | None = None) -> None:
    """Run a variant and print its losses, CPU seconds by step and peak MB as JSON."""
    torch.set_num_threads(1)
    world, work = World(**json.loads(description)), Path(folder)
    losses, seconds = [], []
    if variant == "prepare":
        prepare(world, work)
    else:
        if variant in AUTHORS:
            step, last = authors(world, work, AUTHORS[variant])
        else:
            step, last = ours(world, work, variant)
        for number in range(world.rows):
            start = time.process_time()
            losses.append(step(number))
            seconds.append(time.process_time() - start)
            if gradients and not number:
                arrays: dict[str, Any] = {name: own.numpy() for name, own in last().items()}
                np.savez(gradients, **arrays)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"losses": losses, "seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
