"""Writes mergekit configurations of merges: of a merged folder, or of one that is not made yet."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, nearest
from common.files import write_text
from common.manifest import NAME, read_manifest
from merges.engine.config import MergeConfig
from merges.engine.output import recipe_of
from merges.mergekit.writing import MASKS, mergekit_yaml

if TYPE_CHECKING:
    from checkpoints.reading import Model


def read_merge(folder: Path) -> dict[str, Any]:
    """Return a merge's manifest.

    Raises:
        UserError: The folder is no merge of ours.
    """
    if not (folder / NAME).is_file():
        raise UserError(f"{folder}: no merge with a manifest; give its folder")
    about = read_manifest(folder)
    kind = about.get("kind") if isinstance(about, dict) else None
    if kind != "merge":
        raise UserError(f"{folder}: {kind!a} and no merge; give a merge's folder")
    recipe, inputs = about.get("parameters"), about.get("inputs")
    if not (isinstance(recipe, dict) and isinstance(inputs, dict)) or not _are_names(
        recipe.get("experts")
    ):
        raise _damaged(folder)
    return about


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _damaged(folder: Path) -> UserError:
    return UserError(f"{folder / NAME}: holds no recipe of a merge; make the merge again")


def recipe_in_folder(
    folder: Path, about: Mapping[str, Any], places: Mapping[str, str] | None = None
) -> tuple[str, bool]:
    """Return a merged folder's recipe as a mergekit configuration; see `mergekit_yaml`.

    Args:
        folder: The merge.
        about: Its manifest.
        places: What to call the models, by the recipe's names; None for these names.
    """
    from checkpoints.dtypes import torch_name
    from checkpoints.reading import Checkpoint

    made = Checkpoint(folder)
    stored = {torch_name(made.dtype(name)) for name in made.names()}
    try:
        return mergekit_yaml(about["parameters"], made.names(), stored, places)
    except (LookupError, TypeError, AttributeError, ValueError, StopIteration):
        raise _damaged(folder) from None


def _is_wide(model: Model) -> bool:
    """Return whether a model is stored in float64, in which its merge is then computed."""
    return any(model.dtype(name) == "F64" for name in model.names())


def _place(path: Path) -> str:
    """Return a folder's absolute path: mergekit looks a short relative one up on the hub."""
    from checkpoints.adapters import is_adapter

    if is_adapter(path):
        raise UserError(
            f"{path}: mergekit folds an adapter in its model's type, which rounds; write the "
            "folded model first (a merge of it alone with --method linear), and give that"
        )
    place = os.path.abspath(path)
    if sign := next((sign for sign in "+@" if sign in place), None):
        raise UserError(f"{place}: mergekit ends a model's name at {sign!r}; rename the folder")
    return place


def _write(out: Path, text: str, drawn: bool) -> None:
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give the file to write")
    write_text(out, text)
    if drawn:
        print(f"note: {MASKS}", file=sys.stderr)
    print(f"{out}: a configuration for mergekit 0.1.5")


def export_merge(folder: Path, located: Mapping[str, Path], out: Path) -> None:
    """Write a merged folder's recipe as a mergekit configuration.

    Args:
        folder: The merge.
        located: The folders of its models, by the recipe's names, or of none: then the models
            have these names in the file.
        out: The file to write.

    Raises:
        UserError: The folder is no merge, a model is not the one that was merged, or mergekit
            cannot express the recipe.
    """
    from checkpoints.reading import Checkpoint

    about = read_merge(folder)
    keys = {"base": "base"} if "base" in about["inputs"] else {}
    keys |= {name: f"experts.{name}" for name in about["parameters"]["experts"]}
    for name in located:
        if name not in keys:
            raise UserError(f"--locate: no model {name!r} in the merge{nearest(name, keys)}")
    if located and (missing := [name for name in keys if name not in located]):
        raise UserError(f"--locate: no folder of {missing[0]}; give all of {', '.join(keys)}")
    places = {name: _place(path) for name, path in located.items()} or None
    for name, path in located.items():
        model = Checkpoint(path)
        if not model.has_fingerprint(about["inputs"][keys[name]]):
            raise UserError(f"{path}: not the {name} of {folder}: other weights; give that model")
        if _is_wide(model):
            about["parameters"]["compute_dtype"] = "float64"
    text, drawn = recipe_in_folder(folder, about, places)
    _write(out, text, drawn)


def export_config(config: MergeConfig, out: Path) -> None:
    """Check a merge without making it, and write it as a mergekit configuration.

    Args:
        config: The merge.
        out: The file to write.

    Raises:
        UserError: The merge itself would be refused, or mergekit cannot express it.
    """
    from checkpoints.dtypes import stored_type, torch_name
    from checkpoints.preflight import check_merge
    from checkpoints.settling import settle
    from merges.engine.checks import check_config

    check_config(config)
    places = {name: _place(model.path) for name, model in config.models.items()}
    dtype = None if config.dtype is None else stored_type(config.dtype)
    report = check_merge(
        config.base,
        config.experts,
        dtype=dtype,
        vocabulary=config.vocabulary,
        donor=config.donor,
        chat_template=config.chat_template,
    )
    if report.errors:
        raise UserError(report.errors[0])
    reference = settle(config.reference, config.experts).base
    names = reference.names()
    stored = {config.dtype or torch_name(reference.stored(name)) for name in names}
    recipe = recipe_of(config)
    if any(map(_is_wide, config.models.values())):
        recipe["compute_dtype"] = "float64"
    text, drawn = mergekit_yaml(recipe, names, stored, places)
    _write(out, text, drawn)
