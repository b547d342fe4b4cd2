"""A search's result: the winner's model folder, the table of candidates, the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.card import model_card, public_name
from checkpoints.settling import settle_config
from checkpoints.writing import with_copies, write_checkpoint
from common import manifest
from common.files import read_json, write_json, write_text
from merges.engine import registry
from search.record import TABLE

if TYPE_CHECKING:
    from checkpoints.reading import Checkpoint, Model
    from search.space import Recipe, Space

_CARD = ("kind", "evaluations", "chosen", "dev_average")
_DATA_FLOW = ("data-flow", "Layers along a path", "arXiv:2403.13187")


def write_model(folder: Path, space: Space, recipe: Recipe, base: Model) -> None:
    """Write a candidate of a space into a staged folder, with the base's tokenizer and settings."""
    tensors, changes = space.tensors(recipe)
    write_checkpoint(folder, with_copies(tensors, base.copies), base.path)
    settle_config(folder, base)
    if changes:
        path = folder / "config.json"
        write_json(path, read_json(path) | changes)
    space.finish(folder, recipe)


def write_table(folder: Path, text: str) -> None:
    """Write the table of candidates."""
    write_text(folder / TABLE, text)


def write_record(
    folder: Path,
    space: Space,
    recipe: Recipe,
    about: Mapping[str, Any],
    *,
    models: Mapping[str, Checkpoint],
    inputs: Mapping[str, Path | str],
    vocabulary: str,
    notes: Sequence[str],
    seed: int | None,
    code: Sequence[str],
) -> None:
    """Write the model card and the manifest, the last files of a result.

    Args:
        folder: The result, otherwise complete.
        space: The winner's space.
        recipe: The winner.
        about: The search.
        models: The base as ``base`` and the experts by name, in the order given.
        inputs: What was read, by name.
        vocabulary: The policy by which the models were brought to one vocabulary.
        notes: What was done for that, a sentence each.
        seed: The search's seed.
        code: The entry points that made it.
    """
    described = space.describe()
    title, paper = _DATA_FLOW[1:]
    if "method" in described:
        title, paper = (getattr(registry.info(described["method"]), k) for k in ("title", "paper"))
    # The card names no path of this machine.
    names = {name: public_name(model.path) for name, model in models.items()}
    experts = [name for name in models if name != "base"]
    outputs = {
        str(path.relative_to(folder)): manifest.hash_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "cost.json"
    }
    card = model_card(
        name=f"{title} of {', '.join(experts)}, chosen by its score on dev items",
        method=described.get("method", _DATA_FLOW[0]),
        title=title,
        paper=paper,
        base=names.pop("base"),
        experts=names,
        recipe={**recipe, "search": {key: about[key] for key in _CARD}, "seed": seed},
        inputs={k: v for k, v in inputs.items() if isinstance(v, str)},
        outputs={n: own for n, own in outputs.items() if n.endswith(".safetensors")},
        notes=(*notes, *space.notes(recipe)),
    )
    write_text(folder / "README.md", card)
    manifest.write_manifest(
        folder / manifest.NAME,
        kind="merge",
        parameters={
            "method": described.get("method", _DATA_FLOW[0]),
            "experts": experts,
            "embeddings_and_norms": described.get("embeddings_and_norms"),
            "vocabulary": vocabulary,
            **recipe,
            "search": dict(about),
        },
        inputs=inputs,
        outputs=outputs | {"README.md": folder / "README.md"},
        seed=seed,
        code=code,
    )
