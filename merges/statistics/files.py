"""Statistics on disk: a folder of safetensors with an index and a manifest."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.headers import read_header
from checkpoints.layout import INDEX
from checkpoints.loading import load_tokenizer
from checkpoints.names import is_head, is_linear
from checkpoints.reading import Model, SafetensorsWeights
from common import sources
from common.cost import measure
from common.errors import UserError, nearest
from common.files import sha256_json, write_json
from common.manifest import NAME, check_recorded, read_manifest, write_manifest
from merges.dam.data import Calibration, read_calibration
from merges.dam.flops import attention_flops
from merges.statistics.collecting import Order, Pass
from merges.statistics.kinds import BACKWARD, KINDS

REMADE = "make them again with python -m merges statistics"


class Statistics:
    """What `write_statistics` wrote, opened.

    Args:
        folder: The folder.

    Attributes:
        kind: A key of `KINDS`.
        model: Fingerprint of the checkpoint.
        tokens: Number of tokens that were seen.
        rows: Number of rows.

    Raises:
        UserError: The folder is none of statistics, or differs from its manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        manifest = read_manifest(folder)
        if manifest.get("kind") != "statistics":
            raise UserError(f"{folder}: holds no statistics; {REMADE}")
        check_recorded(folder)
        about = manifest["extra"]
        self.kind, self.model = about["kind"], about["model"]
        self.tokens, self.rows = about["tokens"], about["rows"]
        self._leaders, self._moments = about["inputs"], about["moments"]
        self._weights = SafetensorsWeights(folder / INDEX)

    def _name(self, parameter: str, what: str) -> str:
        if what == "values":
            return parameter
        module = parameter.removesuffix(".weight")
        return f"{module if what == 'output_gram' else self._leaders.get(module, '')}.{what}"

    def has(self, parameter: str, what: str) -> bool:
        """Say whether a parameter has a statistic.

        Args:
            parameter: Its name in the checkpoint.
            what: ``gram``, ``mean_abs`` or ``mean_square`` of a linear layer's input,
                ``output_gram``, or ``values`` for what has the parameter's own shape.
        """
        return self._name(parameter, what) in self._weights.stored

    def read(self, parameter: str, what: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read values [start, stop) of a flattened statistic; see `has`."""
        name = self._name(parameter, what)
        stored = self._weights.stored[name]
        return self._weights.read(name, start, math.prod(stored.shape) if stop is None else stop)

    def matrix(self, parameter: str, what: str) -> Tensor:
        """Read all of a Gram matrix, (width, width)."""
        flat = self.read(parameter, what)
        return flat.view(math.isqrt(len(flat)), -1)

    def mean(self, parameter: str) -> float:
        """Return the mean of a statistic of a parameter's own shape, 0 where there is none."""
        return self._moments["means"].get(parameter, 0.0)

    @property
    def norm(self) -> float:
        """Length of all statistics of the parameters' own shapes, as one vector."""
        return self._moments["norm"]

    def widths(self) -> dict[str, int]:
        """Return the width of every distinct input that has a Gram matrix."""
        return _widths(self._weights)


def _widths(weights: SafetensorsWeights) -> dict[str, int]:
    grams = {name: own for name, own in weights.stored.items() if name.endswith(".gram")}
    return {name.removesuffix(".gram"): own.shape[0] for name, own in grams.items()}


def read_rows(model: Model, paths: Sequence[Path], name: str) -> list[Calibration]:
    """Read the rows that a model is run on.

    Args:
        model: Its tokenizer and context are used.
        paths: Files of JSON lines, as DAM reads them.
        name: What messages call the model.

    Raises:
        UserError: There is no file, or one is bad; see `read_calibration`.
    """
    if not paths:
        raise UserError("no calibration rows; give --calibration FILE")
    tokenizer = load_tokenizer(model.path)
    context = model.config.get("max_position_embeddings", 1 << 30)
    return [read_calibration(name, path, tokenizer, context) for path in paths]


def _flops(order: Order, widths: Mapping[str, int]) -> int:
    """Count forward, Gram matrices (half a product, by symmetry) and backward."""
    model, tokens = order.model, sum(order.lengths)
    body = sum(model.count(n) for n in model.names() if is_linear(n) and not is_head(n))
    forward = 2 * body * tokens + attention_flops(model.config, order.lengths)
    grams = sum(width * (width + 1) for width in widths.values()) * tokens
    # The forward is run twice, and the backward takes two products for each of the forward.
    return forward * (4 if order.kind in BACKWARD else 1) + grams


def _moments(weights: SafetensorsWeights) -> dict[str, Any]:
    means, square = {}, 0.0
    for name, stored in weights.stored.items():
        if name.endswith((".weight", ".bias")):
            values = weights.read(name, 0, math.prod(stored.shape))
            means[name] = float(values.mean(dtype=torch.float64))
            square += float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
    return {"means": means, "norm": math.sqrt(square)}


def _write_index(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    index = {name: shard.name for shard in shards for name in read_header(shard)}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": index})


def _is_statistics(folder: Path) -> bool:
    return (folder / NAME).exists() and read_manifest(folder).get("kind") == "statistics"


def write_statistics(order: Order, out: Path) -> bool:
    """Collect statistics into a folder; a pass that was killed resumes with its next layer.

    Args:
        order: What to collect, of a model on disk.
        out: The folder to make: shards by layer, cost.json and the manifest. Until it is complete,
            the work is in a folder next to it, whose name ends in ``.unfinished``.

    Returns:
        Whether there was anything to do: not where the folder holds just these statistics.

    Raises:
        UserError: An unknown kind or architecture, a folder with other things in it, NaN or
            infinity among the activations, or a full disk.
    """
    if order.kind not in KINDS:
        raise UserError(f"unknown statistics {order.kind!r}{nearest(order.kind, KINDS)}")
    # Long because the manifest records much; the work is `Pass.run`.
    code = ("merges/statistics/collecting.py",)
    inputs: dict[str, Path | str] = {"model": order.model.fingerprint}
    inputs |= {f"calibration.{number}": own.path for number, own in enumerate(order.data)}
    data = sha256_json([own.sha256 for own in order.data])
    parameters = {"collect": order.kind, "tokens": order.tokens}
    key = sha256_json([inputs["model"], data, parameters, order.seed, sources.version(code)])
    if _is_statistics(out) and read_manifest(out)["extra"]["key"] == key:
        return False
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _is_statistics(out)):
        raise UserError(f"{out}: is no earlier folder of statistics; give another output folder")
    work = out.with_name(f"{out.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    with measure(work / "cost.json") as cost:
        own = Pass(order, work, key)
        own.run()
        _write_index(work)
        weights = SafetensorsWeights(work / INDEX)
        tokens = sum(order.lengths)
        cost.count(forward_tokens=tokens, flops=_flops(order, _widths(weights)))
        if order.kind in BACKWARD:
            cost.count(backward_tokens=tokens)
    write_manifest(
        work / NAME,
        kind="statistics",
        parameters=parameters,
        inputs=inputs,
        outputs={p.name: p for p in sorted(work.iterdir()) if p.name not in ("cost.json", NAME)},
        seed=order.seed if order.kind == "fisher" else None,
        code=code,
        extra={
            "kind": order.kind,
            "key": key,
            "model": order.model.fingerprint,
            "data": data,
            "rows": len(order.lengths),
            "tokens": tokens,
            "inputs": own.leaders,
            "moments": _moments(weights),
        },
    )
    if out.exists():
        shutil.rmtree(out)
    os.replace(work, out)
    return True
