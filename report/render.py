"""Writes a readable table as Markdown, LaTeX, HTML or aligned text."""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report.grid import Cell, Grid, letters

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TERMINAL_WIDTH = 120  # of the notes under a table
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "√": r"$\surd$",
    "Σ": r"$\Sigma$",
    "–": "--",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "°": r"$^\circ$",
    "²": r"$^2$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
}


_ROWS = 60  # of a LaTeX table
_PDFLATEX = "‘’“”–—…"  # what it knows beyond Latin letters


def latex_text(text: str) -> str:
    """Escape a text for LaTeX, the report's few signs included."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def markdown(grid: Grid) -> str:
    """Render a table as GitHub Markdown, with its caption above and its notes below."""

    def cell(item: Cell) -> str:
        text = _markdown_text(item.text)
        text = f"**{text}**" if item.strong else text
        return f"{text} ±{item.error}" if item.error else text

    rule = ["---"] * grid.texts + ["---:"] * (len(grid.header) - grid.texts)
    lines = [f"**{grid.title}.** {_markdown_text(grid.caption)}", ""]
    lines += [f"| {' | '.join(map(_markdown_text, grid.header))} |", f"|{'|'.join(rule)}|"]
    lines += [f"| {' | '.join(map(cell, row.cells))} |" for row in grid.rows]
    for note in grid.notes:
        lines += ["", _markdown_text(note)]
    return "\n".join(lines) + "\n"


def latex(grid: Grid) -> str:
    """Render a table as LaTeX that needs the packages booktabs and graphicx.

    One of very many rows becomes several, because a table cannot break at the end of a page.
    """
    if len(grid.rows) > _ROWS:
        starts = range(0, len(grid.rows), _ROWS)
        parts = [dataclasses.replace(grid, rows=grid.rows[n : n + _ROWS], notes=()) for n in starts]
        parts[-1] = dataclasses.replace(parts[-1], notes=grid.notes)
        for place, part in enumerate(parts[1:], 2):
            about = f"{grid.title}, continued ({place} of {len(parts)})."
            parts[place - 1] = dataclasses.replace(part, name=f"{grid.name}-{place}", caption=about)
        return "".join(map(latex, parts))

    def cell(item: Cell) -> str:
        text = latex_text(item.text)
        text = rf"\textbf{{{text}}}" if item.strong else text
        return rf"{text} {{\scriptsize$\pm${item.error}}}" if item.error else text

    columns = "l" * grid.texts + "r" * (len(grid.header) - grid.texts)
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{latex_text(grid.caption)}}}",
        rf"\label{{tab:{grid.name}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(latex_text, grid.header)) + r" \\",
        r"\midrule",
    ]
    group = grid.rows[0].group if grid.rows else ""
    for row in grid.rows:
        if row.group != group:
            lines.append(r"\midrule")
            group = row.group
        lines.append(" & ".join(map(cell, row.cells)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\smallskip\raggedright\footnotesize {latex_text(n)}" for n in grid.notes]
    text = "\n".join([*lines, r"\end{table*}"]) + "\n"
    # pdflatex ends at a sign that it does not know, in a message that names no table.
    if unknown := dict.fromkeys(sign for sign in text if sign > "\u017f" and sign not in _PDFLATEX):
        needed = "XeLaTeX or LuaLaTeX, with a font that has them, for"
        return f"% {needed}: {''.join(unknown)}\n{text}"
    return text


@functools.cache
def templates() -> Environment:
    """Return the page's templates, which escape all texts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    made = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    made.filters["split_tables"] = lambda text: re.split(r"(Table \d+)", text)
    return made


def part(name: str, *arguments: object, file: str = "parts.html.j2") -> Markup:
    """Render one of the macros in a file of templates."""
    return getattr(templates().get_template(file).module, name)(*arguments)


def figure(*arguments: object) -> Markup:
    """Render a figure by the macro in templates/figures.html.j2."""
    return part("figure", *arguments, file="figures.html.j2")


def picture(*arguments: object) -> Markup:
    """Render a figure whose file the page shows, by the macro in templates/figures.html.j2."""
    return part("picture", *arguments, file="figures.html.j2")


def _line_of(text: str, lines: Mapping[str, Sequence[Any]]) -> str | None:
    """Find the row that a label is of, which may have marks and a status behind it."""
    fitting = [
        (len(label), id)
        for id, (label, _) in lines.items()
        if text == label or text.startswith((f"{label}°", f"{label} ("))
    ]
    return max(fitting)[1] if fitting else None


def html(
    grid: Grid, lines: Mapping[str, Sequence[Any]] | None = None, columns: Collection[str] = ()
) -> Markup:
    """Render a table as an HTML figure.

    Args:
        grid: The table.
        lines: Of a table of scores, its rows by id, each with its label first.
        columns: The titles of its columns of scores.
    """
    found = {place: _line_of(row.cells[0].text, lines or {}) for place, row in enumerate(grid.rows)}
    return part("table", grid, {place: id for place, id in found.items() if id}, columns)


def plain(
    grid: Grid,
    errors_in: tuple[str, ...] = ("Avg", "Mean"),
    leave_out: tuple[str, ...] = ("Data seen", "Embeddings, norms"),
) -> str:
    """Render a table as aligned text for a terminal, the best marked with an asterisk.

    Args:
        grid: The table.
        errors_in: Titles of the columns that show their uncertainty; the others leave it out
            so that a row fits a line.
        leave_out: Titles of columns that would make a row too wide.
    """
    kept = [place for place, title in enumerate(grid.header) if title not in leave_out]
    texts = sum(place < grid.texts for place in kept)
    starred = {place for row in grid.rows for place in kept if row.cells[place].strong}

    def cell(item: Cell, place: int) -> str:
        mark = "*" if item.strong else " " if place in starred else ""
        error = f"±{item.error}" if item.error and grid.header[place] in errors_in else ""
        return item.text + mark + error

    table = [[grid.header[place] + (" " if place in starred else "") for place in kept]]
    table += [[cell(row.cells[place], place) for place in kept] for row in grid.rows]
    widths = [max(map(letters, column)) for column in zip(*table, strict=True)]

    def line(cells: list[str]) -> str:
        padded = []
        for place, (text, width) in enumerate(zip(cells, widths, strict=True)):
            space = " " * (width - letters(text))
            padded.append(text + space if place < texts else space + text)
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(table[0]), rule]
    groups = [row.group for row in grid.rows]
    breaks = [False, *(before != after for before, after in pairwise(groups))]
    for cells, new_group in zip(table[1:], breaks, strict=True):
        if new_group:
            lines.append(rule)
        lines.append(line(cells))
    # A note on an error that is left out here would explain what nobody sees.
    shown = [
        note
        for note in grid.notes
        if not note.startswith("±") or any(note.split()[0] in text for text in lines)
    ]
    notes = [
        textwrap.fill(note, TERMINAL_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for note in shown
    ]
    return "\n".join([*lines, *notes]) + "\n"
