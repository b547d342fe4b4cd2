"""Markdown, LaTeX, HTML and terminal text of one small table."""

from __future__ import annotations

import dataclasses

import pytest

from report import render
from report.grid import Cell, Grid, Row, letters, number, shortened

GRID = Grid(
    name="table9",
    title="Table 9",
    caption="A & B_1, 100 %.",
    header=("Model", "Data seen", "A_1†", "Avg"),
    rows=(
        Row((Cell("x|y"), Cell("none"), Cell(".250"), Cell(".250")), "reference"),
        Row((Cell("R&D <50%>"), Cell("dev"), Cell(".830", ".027", True), Cell(".5", ".01")), "m"),
    ),
    notes=("† Not learned.",),
    texts=2,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.83, ".830"), (1.0, "1.000"), (0.0, ".000"), (0.9996, "1.000"), (None, "–")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_markdown():
    lines = render.markdown(GRID).splitlines()
    assert lines[0] == "**Table 9.** A & B\\_1, 100 %."
    assert lines[2] == "| Model | Data seen | A\\_1† | Avg |"
    assert lines[3] == "|---|---|---:|---:|"
    assert lines[4] == "| x\\|y | none | .250 | .250 |"
    assert lines[5] == "| R&D <50%> | dev | **.830** ±.027 | .5 ±.01 |"
    assert lines[-1] == "† Not learned."


def test_latex_escapes_and_marks():
    text = render.latex(GRID)
    assert r"R\&D $<$50\%$>$ & dev & \textbf{.830} {\scriptsize$\pm$.027}" in text
    assert r"\caption{A \& B\_1, 100 \%.}" in text
    assert r"A\_1$^\dagger$" in text
    assert text.count(r"\midrule") == 2  # below the header, between the groups
    assert text.count("{") == text.count("}")
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].replace(r"\&", "")
    assert [line.count("&") for line in body.splitlines() if "&" in line] == [3, 3]


def test_latex_escapes_every_special_sign():
    assert render.latex_text("\\a{b}~^#$") == (
        r"\textbackslash{}a\{b\}\textasciitilde{}\textasciicircum{}\#\$"
    )


def test_html_escapes():
    text = render.html(GRID)
    assert "R&amp;D &lt;50%&gt;" in text
    assert '<b>.830</b> <span class="e">±.027</span>' in text


def test_terminal_text_is_aligned():
    lines = render.plain(GRID).splitlines()
    assert lines[0] == "Model      A_1†      Avg"
    assert lines[2] == "x|y        .250     .250"
    assert lines[4] == "R&D <50%>  .830*  .5±.01"
    assert "Data seen" not in lines[0]
    assert lines[-1] == "† Not learned."


def test_terminal_text_has_no_note_on_an_error_that_it_leaves_out():
    note = "±.027 is a small error."
    assert note in render.markdown(dataclasses.replace(GRID, notes=(note,)))
    assert note not in render.plain(dataclasses.replace(GRID, notes=(note,)))
    shown = "±.01 is a smaller one."
    assert shown in render.plain(dataclasses.replace(GRID, notes=(shown,)))


def test_a_text_is_cut_by_the_room_that_its_letters_take():
    assert shortened("DAM (tuned)", 11) == "DAM (tuned)"
    assert shortened("DAM (tuned)", 10) == "DAM (tune…"
    # Each of these takes the room of two.
    assert shortened("日本語", 6) == "日本語" and letters("日本語") == 6
    assert shortened("日本語", 5) == "日本…" and shortened("日本語", 4) == "日…"
