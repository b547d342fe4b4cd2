"""The tables of the study of ancestry as files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_text
from common.manifest import NAME, write_manifest
from common.worlds import seeds_of
from report import render
from report.case_table import case_csv, case_grid
from studies.ancestry import table
from studies.ancestry.settings import WORLD

_FORMS = {"md": render.markdown, "tex": render.latex}


def write(config: Mapping[str, Any], results: Path, out: Path) -> list[Path]:
    """Write the table of the case with the ancestor, the claim's and, last, their manifest.

    Args as `studies.dam.files.write`.
    """
    case = table.load(config, results)
    found = table.leads(config, case, results)
    (out / NAME).unlink(missing_ok=True)
    texts = {f"{case.table}.csv": case_csv(case), "claim_c11.csv": table.claim_csv(found)}
    scores_table = dataclasses.replace(
        case_grid(case, seeds_of(config)[0]), title=f"Table {case.table.removeprefix('table')}"
    )
    for grid in (scores_table, table.claim_grid(config, case, found)):
        texts |= {f"{grid.name}.{form}": write_form(grid) for form, write_form in _FORMS.items()}
    for name, text in texts.items():
        write_text(out / name, text)
    scores = [
        (f"{world}/{model.id}", results / world / "scores" / "test" / f"{model.id}.json")
        for world in (config["studies"]["ancestry"]["case"], WORLD)
        for model in case.models
    ]
    write_manifest(
        out / NAME,
        kind="tables",
        parameters={"experiment": config["name"], **config["studies"]["ancestry"]},
        inputs={name: path for name, path in scores if path.exists()},
        outputs={name: out / name for name in texts},
        seed=seeds_of(config)[0],
        code=("studies/ancestry/files.py",),
    )
    return [out / name for name in texts]
