"""The teachers' signal: final hidden states of each expert on its own data, kept on disk.

Logits are the product of these states and the expert's output head, so that the cache is exact
and, at a real vocabulary, a small fraction of the logits' size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.reading import Model
from common.cost import count_mapped, measure
from common.errors import UserError
from common.files import staged_directory
from common.manifest import NAME, check_recorded, read_manifest, write_manifest
from common.progress import Progress
from merges.dam.data import Calibration
from merges.dam.network import Decoder
from merges.dam.packing import Packing
from merges.dam.sources import load_sources

# Tokens of one forward: bounds the memory of the activations; the last rows may exceed it.
_TOKENS = 2048


def expert_states(decoder: Decoder, data: Calibration, rows: Sequence[int]) -> Tensor:
    """Compute an expert's final hidden states on rows of its data, end to end: (tokens, hidden)."""
    ids = torch.cat([data.ids[data.starts[row] : data.starts[row + 1]] for row in rows])
    packing = Packing([data.length(row) for row in rows], decoder.device)
    with torch.no_grad():
        return decoder.hidden_states(ids.to(decoder.device), packing)


def compute_states(decoder: Decoder, data: Calibration, progress: Progress | None = None) -> Tensor:
    """Compute an expert's final hidden states (tokens, hidden), parallel to `data.ids`."""
    parts, rows, tokens = [], [], 0
    for row in range(len(data)):
        rows.append(row)
        tokens += data.length(row)
        if tokens >= _TOKENS or row == len(data) - 1:
            parts.append(expert_states(decoder, data, rows).cpu())
            if progress is not None:
                progress.step(len(rows))
            rows, tokens = [], 0
    return torch.cat(parts)


def write_teachers(
    base: Model,
    experts: Mapping[str, Model],
    calibration: Mapping[str, Path],
    out: Path,
    device: str = "cpu",
) -> None:
    """Write the teachers' signal of all experts into a folder.

    Args:
        base: The common ancestor, for configuration and tokenizer.
        experts: The experts by name.
        calibration: Each expert's file of calibration rows.
        out: The folder to make: ``<expert>.safetensors`` with ``hidden`` (tokens, hidden),
            cost.json, and manifest.json with the fingerprints of experts and data.
        device: Torch device on which to compute.

    Raises:
        UserError: Bad data (`load_sources`), a folder that holds something else, or a full disk.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / NAME).exists()):
        raise UserError(f"{out}: is no earlier teacher signal; give another output folder")
    sources = load_sources(base, experts, calibration, device)
    progress = Progress(sum(len(data) for data in sources.calibrations), "teachers: rows")
    outputs, signals = {}, {}
    with staged_directory(out) as folder:
        with measure(folder / "cost.json") as cost:
            for data in sources.calibrations:
                decoder = sources.decoder(sources.experts[data.expert])
                path = folder / f"{data.expert}.safetensors"
                save_file({"hidden": compute_states(decoder, data, progress)}, path)
                outputs[path.name] = path
                # `read_teachers` compares these with the experts and data of a merge.
                signals[data.expert] = {
                    "fingerprint": experts[data.expert].fingerprint,
                    "data": data.sha256,
                    "rows": len(data),
                    "tokens": len(data.ids),
                }
                lengths = [data.length(row) for row in range(len(data))]
                cost.count(
                    forward_tokens=len(data.ids),
                    flops=sources.forward_flops(lengths),
                )
        write_manifest(
            folder / NAME,
            kind="teachers",
            parameters={},
            inputs={
                "base": base.fingerprint,
                **{f"experts.{name}": expert.fingerprint for name, expert in experts.items()},
                **{f"calibration.{name}": Path(calibration[name]) for name in experts},
            },
            outputs=outputs,
            code=("merges/dam/states.py",),
            extra={"experts": signals},
        )


def read_teachers(
    folder: Path, experts: Mapping[str, Model], calibrations: Sequence[Calibration]
) -> list[Tensor]:
    """Read the cached signal of all experts, refusing that of other experts or data.

    Args:
        folder: What `write_teachers` wrote.
        experts: The experts of the merge by name.
        calibrations: Their data, in the order wanted.

    Returns:
        For each of the data, the hidden states (tokens, hidden) parallel to its ids; mapped, so
        that memory holds what was looked at and can be given back.

    Raises:
        UserError: The folder is not as its manifest says, lacks an expert, or was made from
            another expert or other data.
    """
    check_recorded(folder)
    # Fingerprints, not paths: a folder may move, and an expert may be trained again in place.
    signals = read_manifest(folder).get("extra", {}).get("experts", {})
    remade = "make the cache again with python -m merges teachers"
    result = []
    for data in calibrations:
        signal = signals.get(data.expert)
        if signal is None:
            raise UserError(f"{folder}: no teacher signal of expert {data.expert}; {remade}")
        if not experts[data.expert].has_fingerprint(signal["fingerprint"]):
            raise UserError(
                f"{folder}: the signal of {data.expert} is that of another checkpoint than "
                f"{experts[data.expert].path}; {remade}"
            )
        if signal["data"] != data.sha256:
            raise UserError(
                f"{folder}: the signal of {data.expert} was computed on other data than "
                f"{data.path}; {remade}"
            )
        path = folder / f"{data.expert}.safetensors"
        result.append(load_file(path)["hidden"])
        count_mapped(path.stat().st_size)
    return result
