"""LaTeX itself reads the tables."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from report import tables
from report.load import load

LATEX = next(filter(None, map(shutil.which, ("pdflatex", "lualatex", "xelatex"))), None)
pytestmark = pytest.mark.skipif(LATEX is None, reason="LaTeX is not installed (texlive-latex-base)")
ODD = r"50 % of $x_1$ & {a} ~ #2 ^ \alpha ± × †"


def test_every_table_compiles_with_odd_labels_on_as_many_pages_as_there_are_tables(full, tmp_path):
    config = json.loads(full[0].read_text(encoding="utf-8"))
    config["methods"]["soup"]["label"] = ODD
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    written = tables.write(load(tmp_path / "config.json", full[1]), tmp_path / "tables")
    texts = [path.read_text("utf-8") for path in written if path.suffix == ".tex"]
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\begin{document}"
    document = "\n\\clearpage\n".join([head, *texts, r"\end{document}"])
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    said = " ".join((tmp_path / "all.log").read_text("utf-8", "replace").split())
    assert f"({len(texts)} pages" in said and "Missing character" not in said
