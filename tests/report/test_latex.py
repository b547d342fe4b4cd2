"""The tables as LaTeX, compiled by Debian's TeX."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from report import render, tables
from report.load import load
from tests.report.conftest import write

HARD = ["A long label " * 16, "日本語 ß ő ·", "$x_1$ & 100 % {a} #~^\\ <|> “so” – ±", "B"]

ODD = r"50 % of $x_1$ & {a} ~ #2 ^ \alpha ± × †"


def compiled(program: str, folder: Path, body: str, options: str = "") -> str:
    """Compile tables and return TeX's log in one line."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} (Debian: texlive-latex-recommended, texlive-xetex)")
    head = rf"\documentclass{options}{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}"
    (folder / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n", encoding="utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "all.pdf").stat().st_size > 10_000
    return " ".join((folder / "all.log").read_text("utf-8", "replace").split())


def test_every_table_compiles_with_odd_labels_on_as_many_pages_as_there_are_tables(full, tmp_path):
    config = json.loads(full[0].read_text(encoding="utf-8"))
    config["methods"]["soup"]["label"] = ODD
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    written = tables.write(load(tmp_path / "config.json", full[1]), tmp_path / "tables")
    texts = [path.read_text("utf-8") for path in written if path.suffix == ".tex"]
    said = compiled("pdflatex", tmp_path, "\n\\clearpage\n".join(texts), "[twocolumn]")
    assert f"({len(texts)} pages" in said and "Missing character" not in said


@pytest.mark.slow
def test_labels_that_pdflatex_does_not_know_compile_with_xelatex_and_say_so(small, tmp_path):
    config, results, about = small
    for row, label in zip(about["methods"].values(), HARD, strict=True):
        row["label"] = label
    write(config, about)
    texts = [render.latex(grid) for grid in tables.grids(load(config, results))]
    first = texts[0].splitlines()[0]
    assert first == "% XeLaTeX or LuaLaTeX, with a font that has them, for: 日本語"
    compiled("xelatex", tmp_path, "\n".join(texts))


@pytest.mark.slow
def test_very_many_rows_fit_pages(full, tmp_path):
    grid = tables.grids(load(*full))[0]
    rows = [*grid.rows, *grid.rows * 8][:150]
    text = render.latex(dataclasses.replace(grid, rows=tuple(rows)))
    assert text.count(r"\begin{table*}") == 3 and text.count(r"\\" + "\n") == 150 + 3
    assert "Table 1, continued (3 of 3)." in text
    assert text.count(render.latex_text(grid.notes[0])) == 1
    assert "Float too large" not in compiled("pdflatex", tmp_path, text)
