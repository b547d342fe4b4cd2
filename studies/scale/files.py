"""The tables, figures and claims of the study of scale as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_bytes, write_json, write_text
from common.manifest import NAME, write_manifest
from report import drawing, render
from studies.scale import default_run, figures, tables
from studies.scale.claims import judgements
from studies.scale.law import Law, Prediction, fit, predictions
from studies.scale.load import Study, load
from studies.scale.predictors import samples_of, worths

if TYPE_CHECKING:
    from report.grid import Grid

_LEAST = 2  # sizes, and numbers of experts, to which the law can be fitted


def write(config: Mapping[str, Any], results: Path, out: Path) -> list[Path]:
    """Write the study's tables and figures and, last, their manifest.

    Args as `studies.dam.files.write`.
    """
    import matplotlib

    study = load(config, results)
    # The manifest is written last: without it the files are not complete.
    (out / NAME).unlink(missing_ok=True)
    laws = _laws(study)
    method = _law_method(study)
    judged = judgements(study)
    found = worths(samples_of(study.cells))
    grids: list[Grid] = [*tables.claims_grids(judged), tables.models_grid(study)]
    for of, title, caption in _VALUES:
        grids.append(tables.merges_grid(study, of, title, f"{caption} {_SPREAD}"))
    grids.append(tables.tasks_grid(study))
    if laws:
        grids.append(tables.law_grid(laws, study))
    if found:
        own = default_run.samples_of(config, results)
        grids.append(tables.predictors_grid(found, default_run.correlations(own), len(own)))
    pages = ["# What matters at scale", _explanation(study), *map(render.markdown, grids)]
    write_text(out / "scale.md", "\n\n".join(page.rstrip() for page in pages) + "\n")
    write_text(out / "scale.csv", tables.csv(study))
    write_json(out / "predictors.json", {worth.name: worth.as_json() for worth in found})
    written = [out / "scale.md", out / "scale.csv", out / "predictors.json"]
    drawn = {
        "scale_held_in": lambda: figures.by_count(study, "held_in", "score / expert's", False),
        "scale_held_out": lambda: figures.by_count(study, "held_out", "held-out score", True),
    }
    fits = {quality: law for quality, label, law, *_ in laws if label == _label(study, method)}
    if fits:
        drawn["scale_law"] = lambda: figures.law(study, method, fits)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **drawing.STYLE, "backend": "agg"}):
        for name, draw in drawn.items():
            write_bytes(out / f"{name}.png", drawing.rendered(draw(), "png"))
            written.append(out / f"{name}.png")
    write_manifest(
        out / NAME,
        kind="scale study",
        parameters=dict(study.config),
        inputs=dict(study.files),
        outputs={path.name: path for path in written},
        seed=0,
        code=("studies/scale/files.py", "studies/scale/claims.yaml"),
    )
    return written


_SPREAD = "Mean over sets of experts, then over worlds, ± sample standard deviation over worlds."
_VALUES = (
    (
        "held_in",
        "Held-in score relative to the experts",
        "A merge's score on each of its experts' skills, divided by that expert's.",
    ),
    (
        "gain",
        "Share of the experts' gain that is kept",
        "(Merge - base) / (expert - base) on each of its experts' skills.",
    ),
    (
        "held_out",
        "Held-out score",
        "Mean share of exact answers on the five tasks that no expert was trained for.",
    ),
)


def _label(study: Study, method: str) -> str:
    label: str = study.config["methods"][method]["label"]
    return label


def _law_method(study: Study) -> str:
    methods = study.config["methods"]
    return tables.AVERAGE if tables.AVERAGE in methods else next(iter(methods))


def _laws(study: Study) -> list[tuple[str, str, Law, Law | None, list[Prediction]]]:
    """Fit the law for every base and method; predictions where enough sizes are left."""
    found = []
    unseen = study.config["unseen"]
    for quality in study.config["qualities"]:
        for method in study.config["methods"]:
            points = tables.points_of(study, quality, method)
            sizes, counts = {p.size for p in points}, {p.count for p in points}
            if min(len(sizes), len(counts)) < _LEAST:
                continue
            law = fit(
                [p.parameters for p in points], [p.count for p in points], [p.loss for p in points]
            )
            part: tuple[Law | None, list[Prediction]] = (None, [])
            if len(sizes - {unseen["size"]}) >= _LEAST:
                part = predictions(points, unseen["size"], unseen["count"])
            found.append((quality, _label(study, method), law, *part))
    return found


def _explanation(study: Study) -> str:
    """Say in a paragraph what was run."""
    seeds = ", ".join(map(str, study.seeds))
    wanted = len(study.config["seeds"]) * len(study.config["sizes"])
    return (
        f"Worlds of eight skills from the seeds {seeds}: {len(study.files)} of {wanted} parts (a "
        f"part is a seed and a size), {study.cpu_s:,.0f} CPU s. A score is the share of items of "
        "which every token of the answer is the likeliest one, which is the exact match of greedy "
        "decoding; losses are cross-entropy over the answer's tokens."
    )
