"""Figures with labels of every kind and with very many rows."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from report import cost, drawing, figures, palette
from report.compute_figure import compute_figure
from report.load import load

LABELS = ["x" * 200, "日本語のラベル" * 5, r"$\alphabet$", "$x_1$ and 🙂", "a_b^c {d} % \\"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DAM (tuned)", "DAM (tuned)"),
        ("$x$", r"\$x\$"),
        ("a\nb", "a b"),
        ("begin" + "." * 200 + "end", "begin" + "." * 24 + "…" + "." * 10 + "end"),
    ],
)
def test_a_label_is_cut_in_its_middle_and_is_no_mathematics(text, expected):
    assert drawing.written(text) == expected
    assert len(drawing.written(text).replace("\\", "")) <= 44


def test_every_label_is_drawn_and_what_no_font_has_is_said_once(small, tmp_path, capsys):
    config = small[2]
    for about, label in zip(config["methods"].values(), LABELS, strict=False):
        about["label"] = label
    config["methods"]["slerp"]["label"] = LABELS[-1]
    config["cases"]["case1"]["title"] = "$\\frac{ 日" * 30
    small[0].write_text(json.dumps(config))
    written = figures.write(load(small[0], small[1]), tmp_path)
    assert all(path.stat().st_size > 5000 for path in written)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("note: no installed font has ")
    assert "🙂" in lines[0] or r"\U0001f642" in lines[0]


def test_of_very_many_rows_the_highest_are_drawn(small):
    config, scores = small[2], small[1] / "case1/scores/test"
    entry = json.loads((scores / "soup.json").read_text())
    for number in range(60):
        config["methods"][f"m{number}"] = {"label": f"Row {number}", "method": "linear"}
        for score in entry["tasks"].values():
            score["value"] = number / 100
        (scores / f"m{number}.json").write_text(json.dumps(entry | {"model": f"m{number}"}))
        made = small[1] / f"case1/merges/m{number}"
        made.mkdir()
        content = {"wall_s": 1, "cpu_s": 1 + number, "peak_rss_mb": 5, "counted": {"flops": 1e9}}
        (made / "cost.json").write_text(json.dumps(content))
    small[0].write_text(json.dumps(config))
    experiment = load(small[0], small[1])
    case = experiment.cases[0]
    merges = [model for model in figures.shown(case, case.models) if model.kind == "merge"]
    averages = [case.average(model).value for model in case.models if model.kind == "merge"]
    assert len(merges) == drawing.MOST
    assert [case.average(m).value for m in merges] == sorted(averages, reverse=True)[:40]
    assert "Of 64 merges, the 40 with the highest" in figures.titles(experiment)["averages"]
    panel = compute_figure(case, cost.costs(experiment), config).axes[0]
    assert sum(text.get_text() != "" for text in panel.texts) == drawing.MOST


def assert_matplotlibs_pixels(drawn):
    """A picture has the pixels that matplotlib writes, and no alpha."""
    from PIL import Image

    theirs, ours = io.BytesIO(), io.BytesIO(drawing.rendered(drawn, "png"))
    drawn.savefig(theirs, format="png", dpi=150)
    found = np.asarray(Image.open(ours))
    expected = np.asarray(Image.open(theirs))
    assert np.array_equal(found, expected[:, :, :3]) and (expected[:, :, 3] == 255).all()


def test_a_picture_has_the_pixels_that_matplotlib_writes_and_no_alpha(small):
    assert_matplotlibs_pixels(figures.averages_figure(load(small[0], small[1])))


# The first is a hair below a whole number of pixels: rows of another length than matplotlib's
# would be a sheared picture.
@pytest.mark.parametrize("wide", [2.3 * 4 + 0.6, 2.3 * 4 + 0.1, 3.337, 5.0, 7.0066])
def test_pictures_of_any_size_are_whole(wide):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(wide, 0.7 * wide), layout="constrained")
    drawn.subplots().plot([1, 2])
    assert_matplotlibs_pixels(drawn)


def test_bars_are_those_of_barh(small):
    from matplotlib.figure import Figure

    case, config = load(small[0], small[1]).cases[0], small[2]
    pictures = []
    for ours in (True, False):
        axes = Figure().subplots()
        scores = [case.average(model) for model in case.models]
        figures._bars(axes, case.models, scores, config)
        if not ours:
            for bar in list(axes.patches):
                bar.remove()
            paints = [palette.colour(model, config) for model in case.models]
            values = [score.value for score in scores]
            merge = [model.kind == "merge" for model in case.models]
            assert set(merge) == {True, False}
            style = {
                "color": [
                    paint if filled else "none" for paint, filled in zip(paints, merge, strict=True)
                ],
                "edgecolor": paints,
                "linewidth": [0 if filled else 1 for filled in merge],
            }
            axes.barh(range(len(values)), values, height=0.78, **style)
        pictures.append(drawing.rendered(axes.figure, "png"))
    assert pictures[0] == pictures[1]


def test_the_figure_of_averages_is_as_wide_as_its_cases(small):
    experiment = load(small[0], small[1])
    wide = figures.averages_figure(experiment).get_figwidth()
    assert wide == 5 * len(experiment.cases)
