"""The DAM study's report: tables (CSV, Markdown) and figures (PNG)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_bytes, write_text
from common.manifest import NAME, write_manifest
from report import drawing, render
from studies.dam import tables
from studies.dam.figures import FIGURES
from studies.dam.load import Study, load


def write(config: Mapping[str, Any], results: Path, out: Path) -> list[Path]:
    """Write the study's tables and figures and, last, their manifest.

    Args:
        config: The resolved configuration.
        results: The results folder.
        out: Folder to write to; other files in it are left alone.

    Returns:
        The files, the manifest excepted.
    """
    import matplotlib

    study = load(config, results)
    (out / NAME).unlink(missing_ok=True)
    found = tables.differences(study)
    pages = ["# What in DAM matters", tables.explanation(study)]
    pages += [render.markdown(tables.grid(study, name, found)) for name in _names(study)]
    write_text(out / "dam.csv", tables.csv(study, found))
    write_text(out / "dam.md", "\n\n".join(page.rstrip() for page in pages) + "\n")
    written = [out / "dam.csv", out / "dam.md"]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **drawing.STYLE, "backend": "agg"}):
        for name in _names(study):
            kind = study.config["comparisons"][name].get("figure")
            if kind:
                path = out / f"dam_{name}.png"
                write_bytes(path, drawing.rendered(FIGURES[kind](study, name), "png"))
                written.append(path)
    write_manifest(
        out / NAME,
        kind="dam study",
        parameters={"settings": study.config["settings"], "set": study.config["set"]},
        inputs=dict(study.files),
        outputs={path.name: path for path in written},
        seed=0,
        code=("studies/dam/files.py",),
    )
    return written


def _names(study: Study) -> list[str]:
    """Name the comparisons of which anything has been run."""
    return [
        name
        for name, comparison in study.config["comparisons"].items()
        if any(s in study.runs for s in (comparison["reference"], *comparison["settings"]))
    ]
