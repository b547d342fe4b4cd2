"""What `python -m merges inspect` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    texts = []
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        texts.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(texts)


def _coefficients_table(found: Mapping[str, Any]) -> list[str]:
    """Write what coefficients do: all linear layers of a merge, then every group; or nothing."""
    whole = {"layer": "all", "module": "linear layers", **found["all"]}
    rows = []
    for merge, about in whole["coefficients"].items():
        models = list(about["shares"])
        for group in (whole, *found["groups"]):
            if own := group["coefficients"].get(merge):
                layer = "-" if group["layer"] is None else str(group["layer"])
                shares = ", ".join(f"{name} {_number(own['shares'][name])}" for name in models)
                numbers = (_number(own["sum"]), _number(own["spread"]), shares)
                rows.append((merge, layer, group["module"], *numbers))
    header = ("coefficients of", "layer", "module", "sum", "spread", "share of")
    return ["", _table(header, rows)] if rows else []


def _barrier(line: Sequence[float]) -> float:
    return max(line) - max(line[0], line[-1])


def _lines_table(found: Mapping[str, Any] | None) -> list[str]:
    """Write each merge's losses, and the highest barriers from the base and to an expert."""
    if not found:
        return []
    names, rows = list(found["rows"]), []
    for merge, to in found["base"].items():
        sides = (to, found["experts"][merge])
        highest = [max(map(_barrier, side.values())) for side in sides]
        rows.append((merge, *map(_number, [*(to[name][-1] for name in names), *highest])))
    losses = (f"loss on {name}" for name in names)
    header = ("lines to", *losses, "barrier from base", "barrier to experts")
    return ["", _table(header, rows)]


def text_of(found: Mapping[str, Any]) -> str:
    """Write what was found for a terminal: the linear layers together, then every group."""
    whole, experts = found["all"], found["experts"]
    drift = [f"{name} {_number(value)}" for name, value in whole["drift"].items()]
    cosine = [f"{pair} {_number(value)}" for pair, value in whole["cosine"].items()]
    lines = [f"drift: {', '.join(drift)}", f"cosine: {', '.join(cosine) or '-'}"]
    lines.append(f"conflict: {_number(whole['conflict'])}")
    if found["merges"]:
        header = ("merge", *(f"kept of {name}" for name in experts), "outside", "length")
        rows = [
            (name, *(_number(whole["kept"][name][expert]) for expert in experts),
             _number(whole["outside"][name]), _number(whole["length"][name]))
            for name in found["merges"]
        ]  # fmt: skip
        lines += ["", _table(header, rows)]
    header = ("layer", "module", *(f"drift of {name}" for name in experts), "conflict")
    rows = [
        ("-" if group["layer"] is None else str(group["layer"]), group["module"],
         *(_number(group["drift"][name]) for name in experts), _number(group["conflict"]))
        for group in found["groups"]
    ]  # fmt: skip
    lines += ["", _table(header, rows), *_coefficients_table(found)]
    return "\n".join([*lines, *_lines_table(found.get("lines"))])
