"""The smoke check: every model's perplexity on one fixed text, with its parents'."""

from __future__ import annotations

from collections.abc import Sequence

from report.case_table import table_title
from report.experiment import Case, Model, worlds_of
from report.grid import MISSING, Cell, Grid, Row


def _perplexity(model: Model) -> float | None:
    return model.smoke.get("perplexity")


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.3g}" if value < 1000 or value >= 1e7 else f"{value:,.0f}"


def smoke_grid(cases: Sequence[Case]) -> Grid | None:
    """Lay out what the smoke check found, None where it has not run for any model."""
    rows = []
    for seed, case in worlds_of(cases):
        parents = [_perplexity(model) for model in case.models if model.kind != "merge"]
        title = table_title(case.table) + (f", seed {seed}" if seed is not None else "")
        # A merge is compared with its best parent, the strictest reference.
        best = min((value for value in parents if value is not None), default=None)
        for model in case.all_models:
            if not model.smoke:
                continue
            own = _perplexity(model)
            cells = (
                *(title, model.label, _number(own)),
                _number(own / best if own is not None and best is not None else None),
                _number(model.smoke.get("bits_per_byte")),
            )
            rows.append(Row(tuple(map(Cell, cells)), f"{case.id}/{model.kind == 'merge'}"))
    if not rows:
        return None
    caption = (
        "Every model reads one short fixed text in several languages, of which it learned none; "
        "the check is that all logits are finite (a dash: they are not). Perplexity is for each "
        "token. A merge far beyond its parents is broken; small differences say nothing of skills."
    )
    header = ("Table", "Model", "Perplexity", "Times the best parent's", "Bits per byte")
    return Grid("smoke", "Smoke check", caption, header, tuple(rows), texts=2)
