"""Memory and time of DAM for three models of 7B on one 80 GB GPU: counted, and measured on one.

Counted from the shapes and the operations of the code, without the elementwise work on activations;
measured with random weights of the true shape, each variant in its own process, where PyTorch
finds a CUDA device.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from benchmarks.dam_authors import AuthorsTrainer  # noqa: E402
from benchmarks.merge import Records  # noqa: E402
from merges.dam import layers  # noqa: E402
from merges.dam.architecture import Architecture, skeleton  # noqa: E402
from merges.dam.data import Batch, Calibration  # noqa: E402
from merges.dam.flops import body_parameters, forward_flops  # noqa: E402
from merges.dam.head import CHUNK, WIDE, OutputHead  # noqa: E402
from merges.dam.method import training_parameters  # noqa: E402
from merges.dam.sources import Sources  # noqa: E402
from merges.dam.training import Trainer  # noqa: E402
from merges.engine.requests import WholeModelRequest  # noqa: E402

MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}
HEAD = "lm_head.weight"
LENGTHS = (116, 250, 534)  # tokens of one training row: the paper's data have 874 in the mean
PADDED = 2048
ROWS = 1729
CARD_GB = 85.5  # an H100 80GB: 81,559 MiB
RATE = 396e12  # FLOP/s of bf16 products: 40 % of an H100's peak
BANDWIDTH = 2.7e12  # B/s: 80 % of an H100's
CONTEXT_GB = 3.5  # CUDA context, workspaces, fragmentation: assumed
STEPS = 6  # measured; the first warms up
VARIANTS = ("ours", "ordinary", "recomputed", "authors")
ABOUT = """\
ours: gradients by model where the layer's tokens are few, merged weights kept for the others;
ordinary: merged weights kept and dL/dW reduced everywhere; recomputed: as ours, activations and
merged weights computed again in the backward; authors: their procedure, padded."""


class Counts:
    """Bytes and operations of a step, by variant.

    Args:
        config: The models' config.json; weights are bfloat16.
        lengths: Tokens of a training row's samples, one per expert.
    """

    def __init__(self, config: dict[str, Any], lengths: Sequence[int]) -> None:
        self.config, self.lengths, self.models = config, lengths, len(lengths)
        self.tensors = skeleton(config).state_dict()
        self.architecture = Architecture.of(config, self.tensors)
        self.head = self.tensors[HEAD].numel()
        self.linear = body_parameters(self.architecture, self.tensors) + self.head
        self.rest = sum(tensor.numel() for tensor in self.tensors.values()) - self.linear
        matrices = {
            name: tensor.shape
            for name, tensor in self.tensors.items()
            if tensor.dim() == 2 and "embed" not in name
        }
        self.inputs = sum(columns for _, columns in matrices.values())
        # Weights, and inputs, of the layers whose gradients are found by model.
        by_model = [
            shape
            for name, shape in matrices.items()
            if name != HEAD
            and layers.backward_by_model(self.models, sum(lengths), shape[0], "cuda")
        ]
        self.by_model = sum(map(math.prod, by_model))
        self.by_model_inputs = sum(columns for _, columns in by_model)

    def _activations(self) -> float:
        """Bytes per token and layer that autograd keeps."""
        hidden, inner = self.config["hidden_size"], self.config["intermediate_size"]
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        keys = hidden // heads * kv_heads
        norms = 2 * (4 + 2) * hidden  # the normalised input in fp32, the output
        attention = 2 * (2 * hidden + 2 * keys) + 2 * hidden  # q, k, v, outputs
        return norms + attention + 4 * 2 * inner  # gate, its activation, up, their product

    def memory(self) -> dict[str, dict[str, float]]:
        """Return the decimal GB of each line by line and variant."""
        tokens, depth = sum(self.lengths), self.config["num_hidden_layers"]
        hidden, vocabulary = self.config["hidden_size"], self.config["vocab_size"]
        body, padded = self.linear - self.head, self.models * PADDED
        kept = body - self.by_model
        own = self._activations() * tokens
        chunk = min(CHUNK, max(self.lengths)) * vocabulary
        logits = 2 * 2 * chunk + 5 * 4 * min(chunk, WIDE)
        # One line: ours, ordinary, recomputed, authors.
        lines = {
            "experts' linear weights, bf16": [2 * self.models * self.linear] * 4,
            "embeddings and norms, bf16": [2 * (self.models + 1) * self.rest] * 4,
            "merged weights that autograd keeps": [
                2 * kept,
                2 * body,
                2 * kept / depth,
                2 * self.models * self.linear,
            ],
            # The head's gradient once in fp32 and twice in bf16, two blocks of rows in fp32; the
            # authors': gradient and products in bf16.
            "largest working set of one weight": [8 * self.head + 8 * layers.DEVICE_BLOCK] * 3
            + [8 * self.head],
            "activations": [
                own * depth,
                own * depth,
                2 * hidden * tokens * depth + own,
                self._activations() * padded * depth,
            ],
            # Ours: five arrays in fp32; the authors': log p and q kept, as much again at work.
            "logits and their gradients": [logits] * 3 + [2 * 2 * 4 * padded * vocabulary],
            "coefficients, gradient, moments, fp32": [6 * 4 * self.models * self.inputs] * 4,
            "teachers' states of the row": [2 * hidden * tokens] * 3 + [0],
            "context, workspaces (assumed)": [CONTEXT_GB * 1e9] * 4,
        }
        return {
            name: dict(zip(VARIANTS, (value / 1e9 for value in values), strict=True))
            for name, values in lines.items()
        }

    def flops(self) -> dict[str, float]:
        """Return the FLOPs of a step by variant, teachers cached for ours."""
        tokens = sum(self.lengths)
        body = forward_flops(self.architecture, self.tensors, self.lengths)
        own = 2 * self.head * tokens
        full = [PADDED] * self.models
        authors = forward_flops(self.architecture, self.tensors, full) + 2 * self.head * sum(full)
        ordinary = 3 * body + 4 * own
        ours = ordinary + 2 * (self.models - 2) * self.by_model * tokens
        return {
            "ours": ours,
            "ordinary": ordinary,
            "recomputed": ours + body,
            "authors": 4 * authors,
        }

    def traffic(self) -> dict[str, float]:
        """Return the bytes that merged weights and the coefficients' gradients move."""
        # Ours by eager operations with sums in fp32: the first weight is multiplied (6 bytes), each
        # other multiplied and added (10), the sum rounded (6); backward widens the gradient (6),
        # then multiplies it with each weight (10) and sums (4). By model: what a product's value is
        # widened (6), multiplied and added (12), multiplied in place (12) and summed (4).
        build, reduce = 10 * self.models + 2, 14 * self.models + 6
        authors = 4 * self.models + 6 * (self.models - 1) + 8 * self.models
        ordinary = (build + reduce) * self.linear
        by_model = 34 * self.models * self.by_model_inputs * sum(self.lengths)
        ours = ordinary - reduce * self.by_model + by_model
        return {
            "ours": ours,
            "ordinary": ordinary,
            "recomputed": ours + build * (self.linear - self.head),
            "authors": self.models * authors * self.linear,
        }


class _RandomStates:
    """In place of `merges.dam.teaching.Teachers`: cached states, here random."""

    def __init__(self, heads: Sequence[OutputHead]) -> None:
        self.heads, self.computed_flops = list(heads), 0

    def states(self, index: int, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return (loss tokens, hidden) for one expert's dataset."""
        head = self.heads[index].weight
        return torch.randn(len(batch.sources[index]), head.shape[1], dtype=head.dtype)


def our_step(
    models: Sequence[torch.nn.Module],
    config: dict[str, Any],
    samples: Sequence[Tensor],
    recompute: bool,
) -> Callable[[], float]:
    """Return the project's step on samples that repeat, where the models are."""
    device = samples[0].device
    experts = {f"e{number}": model.state_dict() for number, model in enumerate(models)}
    base = skeleton(config).state_dict()
    # The trainer reads these from the base; its other tensors stay without storage.
    base |= {
        name: tensor
        for name, tensor in experts["e0"].items()
        if tensor.dim() == 1 or "embed" in name
    }
    data = [
        Calibration(
            name,
            Path("random"),
            ids.repeat(STEPS),
            [len(ids) * row for row in range(STEPS + 1)],
            [0] * STEPS,
            "",
        )
        for name, ids in zip(experts, samples, strict=True)
    ]
    request = WholeModelRequest(
        base=None,  # type: ignore[arg-type]  # the trainer reads the sources alone
        experts={},
        calibration={},
        teachers=None,
        seed=0,
        embeddings_and_norms="base",
        threads=1,
        device=str(device),
    )
    parameters = training_parameters(
        samples=STEPS, optimizer="mofo", recompute_activations=recompute
    )
    architecture = Architecture.of(config, base)
    trainer = Trainer(request, parameters, Sources(base, config, experts, data, architecture))
    heads = [OutputHead(own[HEAD]) for own in experts.values()]
    trainer.teachers = cast(Any, _RandomStates(heads))
    return trainer.step


def measure(variant: str, config: dict[str, Any], device: str) -> dict[str, float]:
    """Run some steps with random weights.

    Args:
        variant: Of `VARIANTS`.
        config: The models' config.json.
        device: Torch device.

    Returns:
        The least ``seconds`` of a step, and the peak ``gb`` that PyTorch reserved on a GPU.
    """
    settings = {key: value for key, value in config.items() if key != "model_type"}
    parsed = AutoConfig.for_model(config["model_type"], **settings)
    with torch.device(device):
        models = [AutoModelForCausalLM.from_config(parsed, dtype=torch.bfloat16) for _ in LENGTHS]
        samples = [torch.randint(config["vocab_size"], (length,)) for length in LENGTHS]
    for model in models:
        model.requires_grad_(False).eval()
    if variant == "authors":
        trainer = AuthorsTrainer(models, torch.bfloat16)

        def step() -> float:
            return trainer.step(samples, PADDED)
    else:
        if variant == "ordinary":
            layers.backward_by_model = lambda *layer: False
        step = our_step(models, config, samples, variant == "recomputed")
    seconds = []
    with torch.device(device):
        for _ in range(STEPS):
            start = time.monotonic()
            step()  # ends by handing the loss to the host
            seconds.append(time.monotonic() - start)
    peak = torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else 0.0
    return {"seconds": min(seconds[1:]), "gb": peak}


def budget(records: Records) -> None:
    """Print and record the counted budget, and the one measured on a GPU."""
    counts = Counts(MISTRAL, LENGTHS)
    memory, flops, traffic = counts.memory(), counts.flops(), counts.traffic()
    print(f"7B x {counts.models}, {sum(LENGTHS)} tokens a step; the authors' {3 * PADDED}")
    print(f"{ABOUT}\n")
    print(f"{'decimal GB':<44}" + "".join(f"{variant:>12}" for variant in VARIANTS))
    for name, values in memory.items():
        print(f"{name:<44}" + "".join(f"{values[variant]:12.2f}" for variant in VARIANTS))
    total = {name: sum(values[name] for values in memory.values()) for name in VARIANTS}
    print(f"{f'total (a card has {CARD_GB})':<44}" + "".join(f"{v:12.1f}" for v in total.values()))
    print(f"\nassumed: {RATE / 1e12:.0f} TFLOP/s, {BANDWIDTH / 1e12} TB/s, one after the other")
    seconds = {name: flops[name] / RATE + traffic[name] / BANDWIDTH for name in VARIANTS}
    for name in VARIANTS:
        print(
            f"{name:<14} {flops[name] / 1e12:6.1f} TFLOP {traffic[name] / 1e9:8.0f} GB "
            f"{1000 * seconds[name]:8.0f} ms a step {ROWS * seconds[name] / 60:6.1f} min in all"
        )
    cache = forward_flops(counts.architecture, counts.tensors, LENGTHS) * ROWS
    print(f"teachers' states, once {cache / RATE:41.0f} s\n")
    print(f"{'':<44} {'':<14} {'ours':>10}{'other':>10}")
    for name in VARIANTS[:-1]:
        label = f"7B x 3, {name}, counted"
        records.add(label, "GB", total[name], total["authors"])
        records.add(label, "min", ROWS * seconds[name] / 60, ROWS * seconds["authors"] / 60)
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    for name in VARIANTS:  # a process for each, so that its peak memory is its own
        done = subprocess.run(
            [sys.executable, __file__, name], capture_output=True, text=True, check=False
        )
        label = f"7B x 3, {name}, measured (other: counted)"
        if "OutOfMemoryError" in done.stderr:
            print(f"{label:<44} does not fit")
            continue
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        found = json.loads(done.stdout.splitlines()[-1])
        records.add(label, "GB", found["gb"], total[name])
        records.add(label, "ms a step", 1000 * found["seconds"], 1000 * seconds[name])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], MISTRAL, "cuda")))
