"""Checks before an experiment on published checkpoints starts: token, folders, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import existing_above
from paper.hub.table import Reference
from workflow.config.experiment import Experiment


def has_token() -> bool:
    """Return whether the hub's library will find a token."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return bool(os.environ.get("HF_TOKEN")) or file.is_file()


def no_token(reference: Reference) -> str:
    return (
        f"{reference.id} ({reference.repository}) is gated and there is no token: accept its "
        f"licence on {reference.page}, then HF_TOKEN=... or `hf auth login`"
    )


def check_tokens(config: Experiment, names: Sequence[str]) -> None:
    """Refuse downloads of gated references, given by id, where there is no token.

    Raises:
        UserError: One line with the first such reference and where its licence is accepted.
    """
    if not names or config.hub.mirror is not None or has_token():
        return
    table = config.hub.references
    for reference in (table[name] for name in names):
        if reference.gated:
            raise UserError(no_token(reference))


def check_places(config: Experiment) -> None:
    """Refuse local copies that are not where the configuration says.

    Raises:
        UserError: One line with the key and its folder.
    """
    for key in ("mirror", "benchmarks"):
        folder = getattr(config.hub, key)
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"hub.{key}: {folder} is no folder; correct the path, or drop the key")


def gigabytes_in(folder: Path) -> float:
    """Add up the files below a folder, in GB; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def free_gigabytes(place: Path) -> float:
    """Return the free GB of the disk on which a folder is, or will be."""
    return shutil.disk_usage(existing_above(place)).free / 1e9


def check_disk(gigabytes: float, place: Path) -> None:
    """Refuse steps that will leave more than the disk has room for.

    Args:
        gigabytes: What they will add, in GB.
        place: The folder of the results; it need not exist.

    Raises:
        UserError: One line with both figures.
    """
    free = free_gigabytes(place)
    if gigabytes > free:
        raise UserError(
            f"{place} needs about {gigabytes:.0f} GB more and {free:.0f} GB are free; free some "
            "space, link the folder to a larger disk, or take rows out of the configuration"
        )
