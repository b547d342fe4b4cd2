"""What is next to the weights in a merged model's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.card import model_card, public_name
from common import manifest
from common.files import write_text
from merges.engine import registry
from merges.engine.config import MergeConfig
from merges.engine.requests import WholeModelResult

COST = "cost.json"
_EXTRA = Path("extra") / "coefficients.safetensors"
_LOG = "training.csv"
# What other merges do not depend on.
_SLICES, _ALIGNMENT = "merges/engine/slices.py", "merges/alignment/aligning.py"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_extras(folder: Path, result: WholeModelResult) -> None:
    """Write what a whole-model method gives besides a model: coefficients and training log.

    Args:
        folder: The model's folder, staged by the caller.
        result: The merge's result; of a tensor-by-tensor method there is nothing to write.
    """
    if result.extra_tensors:
        from safetensors.torch import save_file

        (folder / _EXTRA).parent.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in sorted(result.extra_tensors.items())},
            folder / _EXTRA,
        )
    if result.log:
        write_text(folder / _LOG, _table(result.log))


def recipe_of(config: MergeConfig) -> dict[str, Any]:
    """Return what a manifest says of how a merge was made."""
    rules = config.parameters_for
    return {
        "method": config.method,
        "set": config.resolved,
        "experts": list(config.experts),
        "embeddings_and_norms": config.embeddings_and_norms,
        "compute_dtype": config.compute_dtype,
        "dtype": config.dtype,
        "donor": config.donor,
        "vocabulary": config.vocabulary,
        **({} if config.slices is None else {"slices": config.slices.as_json()}),
        **({} if config.align is None else {"align": config.align}),
        **({} if rules is None else {"set_layers": rules.as_json()}),
        **({} if config.chat_template is None else {"chat_template": config.chat_template}),
    }


def write_record(
    folder: Path, config: MergeConfig, hashes: Mapping[str, str], notes: tuple[str, ...]
) -> None:
    """Write the model card and, last, the manifest.

    Args:
        folder: The model's folder, staged by the caller and otherwise complete.
        config: The merge.
        hashes: Sha256 of each weight file by its name.
        notes: Sentences for the card.
    """
    info, models, recipe = config.info, config.models, recipe_of(config)
    data = {f"calibration.{name}": path for name, path in config.calibration.items()}
    if config.teachers is not None:
        data["teachers"] = config.teachers
    data |= {f"{found.kind}.{name}": found.path for name, found in config.statistics.items()}
    inputs = {
        key if key == "base" else f"experts.{key}": model.fingerprint
        for key, model in models.items()
    }
    # The card names no path of this machine.
    names = {key: public_name(model.path) for key, model in models.items()}
    card = model_card(
        name=f"{info.title} of {', '.join(config.experts)}",
        method=info.name,
        title=info.title,
        paper=info.paper,
        base=names.pop("base", None),
        experts=names,
        recipe={**recipe, "seed": config.seed},
        inputs=inputs,
        outputs=hashes,
        notes=notes,
    )
    write_text(folder / "README.md", card)
    manifest.write_manifest(
        folder / manifest.NAME,
        kind="merge",
        parameters=recipe,
        inputs={**inputs, **data},
        outputs={
            str(path.relative_to(folder)): hashes.get(path.name, path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != COST
        },
        seed=config.seed,
        code=(
            *registry.sources(info.name),
            *((_SLICES,) if config.slices else ()),
            *((_ALIGNMENT,) if config.align else ()),
        ),
    )
