"""The folder of a rehearsal: a mirror of stand-ins and the paper's configuration on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import staged_directory, write_text
from common.manifest import ROOT
from hub.table import Reference, read_table
from rehearsal.datasets import text, write_datasets
from rehearsal.models import write_family

_ROWS = 12  # calibration rows per expert
_LENGTH = 256  # tokens: some rows are cut
_SAMPLES = 8  # rows that a training sees
_OBJECTIVES = ("kl", "mse", "entropy")  # one of each kind, with a seed
_ITEMS = 4  # of each task
_OWN_TOKENS = {"GAIR/Abel-7B-002": ("[PAD]",)}  # as the published model has


def _families(config: dict[str, Any], table: dict[str, Reference]) -> dict[str, list[Reference]]:
    """List each case's models, the base first, then experts and published merges."""
    families = {}
    for name, case in config["cases"].items():
        parents = [case["base"], *case["experts"].values()]
        rows = [
            row
            for row in config["methods"].values()
            if "hub" in row and name in row.get("cases", [name])
        ]
        families[name] = [table[entry["hub"]] for entry in [*parents, *rows]]
    return families


def _kind(base: Reference) -> str:
    if "mistral" in base.repository.lower():
        return "mistral"
    if "llama-3" in base.repository.lower():
        return "llama3"
    raise UserError(f"{base.repository}: no stand-in is known for it; rehearse with paper.yaml")


def _shrunk(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Change what the machine at hand cannot do, and nothing else."""
    config["name"] = "rehearsal"
    config["hub"]["mirror"] = str(folder / "mirror")
    config["evaluation"] |= {"backend": "hf", "device": "cpu", "engine": "sqlite"}
    config["evaluation"] |= {"dtype": "float32", "batch_size": 16, "limit": _ITEMS}
    config["calibration"] |= {"rows": _ROWS, "max_length": _LENGTH}
    for case in config["cases"].values():
        case["size"]["parameters"] = 1e5
    for row in config["methods"].values():
        if row.get("method") in ("dam", "adamerging"):
            row["set"] = {**row["set"], "samples": _SAMPLES}
    ablation = config["ablation"]
    ablation["seeds"] = ablation["seeds"][:1]
    ablation["objectives"] = {name: ablation["objectives"][name] for name in _OBJECTIVES}
    return config


def make(source: Path, out: Path) -> None:
    """Make the folder.

    Args:
        source: The configuration to rehearse.
        out: The folder, new or empty.

    Raises:
        UserError: A base has no stand-in, or the table lacks a reference.
    """
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    table = read_table(ROOT / config["hub"]["table"])
    with staged_directory(out) as folder:
        write_datasets(folder / "mirror")
        for family in _families(config, table).values():
            write_family(
                _kind(family[0]),
                [reference.repository for reference in family],
                text(),
                folder / "mirror",
                pickled=[reference.repository for reference in family if reference.pickle],
                extra=_OWN_TOKENS,
            )
        shrunk = _shrunk(config, out.resolve())
        write_text(
            folder / "config.yaml", yaml.safe_dump(shrunk, allow_unicode=True, sort_keys=False)
        )
