"""What a step asks of a machine: GPUs, memory and time, from the size of the models it works on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workflow.config.cases import Case

GPU_FROM = 100e6  # parameters; below, importing the libraries takes longer than the work on a CPU
_LIBRARIES = 2000  # MB: Python with torch, transformers and lm-eval, and their caches
_START = 30  # minutes that the smallest step may take on a busy node, imports included


@dataclass(frozen=True)
class Work:
    """What a kind of work holds and how long it lasts, per model of the case's size."""

    memory: float = 0.0  # models held in a node's memory
    per_expert: float = 0.0  # further models there for each expert
    gpu_memory: float | None = None  # models' worth of memory on the GPU, None for work on the CPU
    gpu_per_expert: float = 0.0  # further models there for each expert
    minutes: float = 0.0  # for each GB of a model's weights


# Upper bounds: a scheduler kills what goes beyond. Counted, not measured, but for the bottle's.
WORK = {
    "data": Work(),
    # Streamed to disk and hashed; 15 MB a second is a slow line.
    "fetch": Work(minutes=1.1),
    # Weights, gradients, Adam's two moments, activations. Only the bottle and the cask train.
    "train": Work(memory=6.0),
    # Expert after expert on the GPU, with the logits of one batch.
    "teachers": Work(memory=2.0, gpu_memory=1.25, minutes=4.0),
    # Layer by layer: at most 4 GB at 8 B parameters (docs/merging.md), twice forward and backward.
    "statistics": Work(memory=0.5, gpu_memory=0.5, minutes=8.0),
    # Streamed: the experts', the base's and about six more buffers of the largest parameter in
    # float32, together less than one model. Spectral methods take most of the time.
    "merge": Work(memory=1.0, minutes=8.0),
    # All experts stay on the GPU; activations, logits and workspace take about 0.75 of a model.
    "trained_merge": Work(
        memory=1.0, per_expert=1.0, gpu_memory=0.75, gpu_per_expert=1.0, minutes=8.0
    ),
    # The parents stay in memory, candidates are scored on the GPU; the time is per evaluation.
    "search": Work(memory=2.0, per_expert=1.0, gpu_memory=1.5, minutes=2.0),
    "trained_search": Work(
        memory=2.0, per_expert=1.0, gpu_memory=1.75, gpu_per_expert=1.0, minutes=10.0
    ),
    # The weights, and as much room again for the cache of keys and values.
    "evaluate": Work(memory=1.5, gpu_memory=2.0, minutes=5.0),
    # One model after another, read in float32; the time is per model.
    "smoke": Work(memory=3.0, minutes=0.5),
    # A piece of every model at a time, mapped; the time is per model.
    "inspect": Work(memory=0.5, minutes=0.5),
}


def ask(
    kind: str,
    case: Case,
    *,
    experts: int = 0,
    times: int = 1,
    device: str = "cpu",
    attempt: int = 1,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
) -> dict[str, int]:
    """Return what a step asks for.

    Args:
        kind: A key of `WORK`.
        case: A case of the resolved configuration.
        experts: Models that are merged.
        times: Evaluations of a search, or models of a smoke check or an inspection.
        device: Where models are scored; small ones, too, are on the GPU that is named here.
        attempt: 1, and one more with each retry: half as much memory again, as much time again.
        tensor_parallel: GPUs over which a model is divided.
        data_parallel: Copies of the model, each with separate GPUs.

    Returns:
        ``gpu`` (how many), ``gpu_mem_mb`` (on each), ``mem_mb`` (of the node) and ``runtime``
        (minutes).
    """
    work, size = WORK[kind], case.gigabytes
    named = kind in ("evaluate", "search", "trained_search") and device != "cpu"
    large = case.parameters >= GPU_FROM and not case.in_cask  # a cask's fit a CPU
    on_gpu = named or (work.gpu_memory is not None and large)
    held = data_parallel * work.memory + work.per_expert * experts
    gpu_held = (work.gpu_memory or 0.0) + work.gpu_per_expert * experts
    return {
        "gpu": tensor_parallel * data_parallel if on_gpu else 0,
        "gpu_mem_mb": math.ceil(1000 * size * gpu_held / tensor_parallel) if on_gpu else 0,
        "mem_mb": math.ceil((1 + attempt) / 2 * (_LIBRARIES + 1000 * size * held)),
        "runtime": attempt * math.ceil(_START + size * work.minutes * times),
    }
