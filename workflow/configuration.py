"""An experiment's configuration file: read, extended, checked before anything runs.

Light on purpose: the Snakefile imports this at every parse, so torch stays out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from common.errors import UserError
from common.yaml_files import read_yaml
from studies.rooms import Studies
from workflow.config.cases import World
from workflow.config.entry import explain
from workflow.config.experiment import Experiment

EXTENDS = "extends"


class Configuration(Experiment):
    """An experiment: models, rows, how they are evaluated, and the studies."""

    studies: Studies = Field(Studies(), description="Studies outside the default run.")

    @property
    def worlds(self) -> dict[str, World]:
        """The cases as they are run, one for each seed, then the further worlds of studies.

        The key is the world's folder in the results. A study's world has no table of the report.
        """
        cases = {
            folder: World.repeat(case, name, seed)
            for name, case in self.cases.items()
            for folder, seed in self.worlds_of(name).items()
        }
        return cases | self.studies.worlds(self)

    @property
    def summary(self) -> str:
        """The size of the experiment in words."""
        merges = sum(len(self.rows_of(case)) for case in self.cases)
        parents = sum(len(case.parents) for case in self.cases.values())
        runs = len(self.ablation.objectives) * len(self.ablation.seeds) if self.ablation else 0
        studies = ", ".join(self.studies.present) or "none"
        worlds = len(self.world_seeds)
        times = f" in each of {worlds} worlds" if worlds > 1 else ""
        return (
            f"{len(self.cases)} cases, {parents} bases and experts, {len(self.methods)} rows that "
            f"make {merges} merges{times}, {runs} runs of the ablation; studies: {studies}"
        )

    def check(self) -> None:
        """Refuse what does not fit together; see `Experiment.check`."""
        super().check()
        self.studies.check(self)


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Put one configuration over another and return the result, the base's keys first.

    Mappings are merged key by key, null removes a key, all else replaces.
    """
    # Only the top level has both keys, and each stands for the other.
    other = {"seed": "seeds", "seeds": "seed"}
    merged = {key: value for key, value in base.items() if other.get(key) not in own}
    for key, value in own.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def read(path: Path, extending: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a configuration file and the files that it extends.

    Args:
        path: The file.
        extending: Files that led to it, each of which extends the next.

    Returns:
        The configuration without its key `extends`, not yet checked.

    Raises:
        UserError: A file is missing or no YAML mapping, or files extend each other in a circle.
    """
    by = f", which {extending[-1]} extends" if extending else ""
    if path.resolve() in [other.resolve() for other in extending]:
        raise UserError(
            f"{path}{by}: files extend each other in a circle; break it at one 'extends'"
        )
    if not path.exists():
        raise UserError(f"{path}{by}: no such configuration; correct the path")
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a configuration (a mapping of keys is expected)")
    return _extended(config, path, extending)


def _extended(config: dict[str, Any], path: Path, extending: Sequence[Path] = ()) -> dict[str, Any]:
    if EXTENDS not in config:
        return config
    own = {key: value for key, value in config.items() if key != EXTENDS}
    if not isinstance(config[EXTENDS], str):
        raise UserError(f"{path}: extends: {config[EXTENDS]!r} is not the path of a configuration")
    return merge(read(path.parent / config[EXTENDS], [*extending, path]), own)


def resolve(config: Mapping[str, Any], source: str = "config.yaml") -> Configuration:
    """Check a configuration and fill in its defaults.

    Args:
        config: The configuration as read.
        source: The file that it came from, for messages.

    Raises:
        UserError: Something is unknown, missing or out of range; one line with the place and,
            where there is one, the nearest valid name.
    """
    try:
        configuration = Configuration.model_validate(dict(config))
        configuration.check()
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return configuration


def load(path: Path | str) -> Configuration:
    """Read, check and resolve a configuration file; see `read` and `resolve`."""
    return resolve(read(Path(path)), str(path))


def from_snakemake(config: Mapping[str, Any], files: Sequence[Path]) -> Configuration:
    """Check what Snakemake read, with the files that its files extend.

    A message names the file as on the command line; see `resolve`.

    Args:
        config: Snakemake's configuration: its files, later ones over earlier ones, and --config.
        files: The files that were given with --configfile, absolute; none for config.yaml.
    """
    merged: dict[str, Any] = {}
    for path in files:
        merged = merge(merged, read(path))
    own = {key: value for key, value in config.items() if key != EXTENDS}
    names = [_as_given(path) for path in files]
    return resolve(merge(merged, own) if merged else config, ", ".join(names) or "config.yaml")


def _as_given(path: Path) -> str:
    """Return a file's path as it is on the command line, else from the current folder."""
    words = (word.rpartition("=")[2] for word in sys.argv)
    return next((word for word in words if Path(word).absolute() == path), os.path.relpath(path))
