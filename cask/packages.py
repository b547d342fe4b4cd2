"""The table of pretrained models that packages bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, nearest
from common.yaml_files import read_yaml

TABLE = Path(__file__).parent / "packages.yaml"


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
