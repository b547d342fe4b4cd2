"""Quality against compute: what rows pay for, the Pareto line by hand, labels that stay apart."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re

import pytest

from report import cost, figures, panels
from report.compute import data_of, pareto, points
from report.compute_figure import compute_figure, data_figure, place_labels
from report.load import load


def write_cost(path, **measured):
    path.write_text(json.dumps({"wall_s": 1, "cpu_s": 1, "peak_rss_mb": 5, **measured}))


def found(small):
    experiment = load(small[0], small[1])
    return experiment, cost.costs(experiment)


@pytest.mark.parametrize(
    ("costs", "values", "expected"),
    [
        ([1, 2, 3, 4], [0.1, 0.3, 0.2, 0.4], [0, 1, 3]),  # the third is dearer and worse
        ([4, 3, 2, 1], [0.1, 0.2, 0.3, 0.4], [3]),  # the cheapest is the best
        ([0, 0, 0], [0.2, 0.5, 0.5], [1]),  # of equals the first
        ([5, 1, 5, 9], [0.6, 0.2, 0.7, 0.7], [1, 2]),  # as good but dearer does not count
        ([], [], []),
    ],
)
def test_pareto_by_hand(costs, values, expected):
    assert pareto(costs, values) == expected


def test_pareto_s_points_are_those_that_no_other_beats():
    costs = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
    values = [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0]

    def beaten(i):
        return any(
            costs[j] <= costs[i]
            and values[j] >= values[i]
            and (costs[j] < costs[i] or values[j] > values[i])
            for j in range(len(costs))
        )

    unbeaten = {(costs[i], values[i]) for i in range(len(costs)) if not beaten(i)}
    assert {(costs[i], values[i]) for i in pareto(costs, values)} == unbeaten == {(1, 8), (9, 9)}


def test_a_row_pays_for_its_search_and_for_the_teachers_it_learned_from(small):
    merges = small[1] / "case1/merges"
    write_cost(small[1] / "case1/teachers/cost.json", cpu_s=4, counted={"flops": 7e9})
    write_cost(merges / "soup/cost.json", cpu_s=2, counted={"parameters": 10})
    searched = {"dev_tokens": 100, "dev_flops": 3e9, "evaluations": 3}
    write_cost(merges / "ties_tuned/cost.json", cpu_s=8, counted=searched)
    learned = {"flops": 1e9, "forward_tokens": 20, "backward_tokens": 20}
    write_cost(merges / "dam/cost.json", cpu_s=16, counted=learned)
    manifest = json.loads((merges / "dam/manifest.json").read_text())
    manifest["inputs"]["teachers"] = "0" * 64
    (merges / "dam/manifest.json").write_text(json.dumps(manifest))
    experiment, costs = found(small)
    made = {point.model.id: point for point in points(experiment.cases[0], costs)}
    assert {id: (point.flops, point.cpu_s) for id, point in made.items()} == {
        "soup": (0, 2),
        "ties_tuned": (3e9, 8),
        "slerp": (3e12, 10),  # as the made-up folder has it
        "dam": (8e9, 20),
    }
    rows = list(csv.DictReader(io.StringIO(cost.cost_csv(costs))))
    tuned = next(row for row in rows if row["stage"] == "search")
    assert (tuned["forward_tokens"], tuned["backward_tokens"]) == ("100", "0")
    assert (tuned["flops"], tuned["evaluations"]) == ("3000000000", "3")
    soup = next(row for row in rows if (row["stage"], row["id"]) == ("merges", "soup"))
    assert [soup[name] for name in cost.DERIVED] == ["0", "0", "0", "0"]
    labels = [row.cells[1].text for row in cost.rows_grid(experiment, costs).rows]
    assert labels[-1] == "DAM's teachers"


def test_a_row_pays_for_statistics_and_for_the_row_that_it_works_on(small):
    case = small[1] / "case1"
    for name, seconds in [("gram/ja", 3), ("gram/math", 5), ("fisher/ja", 100)]:
        path = case / "statistics" / name / "cost.json"
        path.parent.mkdir(parents=True)
        write_cost(path, cpu_s=seconds, counted={"flops": 1e9})
    write_cost(case / "merges/soup/cost.json", cpu_s=2, counted={})
    write_cost(case / "merges/dam/cost.json", cpu_s=16, counted={})
    inputs = {"soup": ["gram.ja", "gram.math"], "dam": ["experts.ties_tuned", "kronecker.ja"]}
    write_cost(case / "merges/ties_tuned/cost.json", cpu_s=8, counted={})
    for row, names in inputs.items():
        path = case / f"merges/{row}/manifest.json"
        manifest = json.loads(path.read_text())
        manifest["inputs"] = dict.fromkeys(names, "0" * 64)
        path.write_text(json.dumps(manifest))
    experiment, costs = found(small)
    made = {point.model.id: point for point in points(experiment.cases[0], costs, beyond=True)}
    assert (made["soup"].cpu_s, made["soup"].flops) == (10, 2e9)
    assert made["dam"].cpu_s == 24  # with the search of the merge that it was given
    known = {id: data_of(point.model) for id, point in made.items()}
    assert (known["soup"], known["dam"], known["ties_tuned"]) == ("rows", "answers", "none")
    assert data_of(dataclasses.replace(made["soup"].model, method="supermerge")) == "answers"
    labels = [row.cells[1].text for row in cost.rows_grid(experiment, costs).rows]
    assert labels[-1] == "Statistics of layers"
    figure = data_figure(experiment.cases[0], costs, small[2])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "Model Soups" in texts and len(texts) == len(made)


def test_what_the_price_lists_is_a_column(small):
    given = {"gpu_s": 0.5, "peak_gpu_mb": 9, "bytes_read": 2e6, "bytes_written": 1e6}
    write_cost(small[1] / "case1/merges/soup/cost.json", **given, counted={})
    experiment, costs = found(small)
    rows = csv.DictReader(io.StringIO(cost.cost_csv(costs)))
    soup = next(row for row in rows if (row["stage"], row["id"]) == ("merges", "soup"))
    assert (soup["wall_s"], soup["cpu_s"], soup["gpu_s"]) == ("1.000", "1.000", "0.500")
    assert (soup["peak_rss_mb"], soup["peak_gpu_mb"]) == ("5", "9")
    assert (soup["bytes_read"], soup["bytes_written"]) == ("2000000", "1000000")
    grid = cost.rows_grid(experiment, costs)
    (shown,) = [row for row in grid.rows if row.cells[1].text == "Model Soups"]
    cells = dict(zip(grid.header, (cell.text for cell in shown.cells), strict=True))
    assert (cells["GPU s"], cells["Read, MB"], cells["Written, MB"]) == ("0.5", "2.0", "1.0")
    assert (cells["FLOPs"], cells["Dev evaluations"]) == ("–", "–")


def test_what_a_search_spent_before_it_was_stopped_is_in_its_price(small):
    earlier = {"earlier_wall_s": 6.0, "earlier_cpu_s": 5.0}
    made = {"wall_s": 2.0, "cpu_s": 1.5, "gpu_s": 4.0, "counted": earlier}
    path = small[1] / "case1/merges/ties_tuned/cost.json"
    path.write_text(json.dumps(made))
    (found,) = cost.read_cost(path, "search", "case1", "ties_tuned")
    assert (found.wall_s, found.cpu_s, found.gpu_s) == (8.0, 6.5, 16.0)


def test_labels_cover_neither_points_nor_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 1)
    # A crowd at one place, a column, and a point at the right edge.
    costs = [1.0] * 9 + [3.0] * 6 + [9.9]
    values = [0.5 + 0.001 * i for i in range(9)] + [0.1 * i + 0.2 for i in range(6)] + [0.95]
    boxes = place_labels(axes, costs, values, [f"Method number {i}" for i in range(16)])
    assert len(boxes) == 16
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = axes.get_window_extent()
    for box in boxes:
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        for x, y in axes.transData.transform(list(zip(costs, values, strict=True))):
            assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)


def test_the_figure_has_a_panel_each_for_flops_and_cpu_seconds(small):
    write_cost(small[1] / "case1/merges/soup/cost.json", counted={})
    experiment, costs = found(small)
    figure = compute_figure(experiment.cases[0], costs, small[2])
    flops, seconds = figure.axes
    assert "FLOPs" in flops.get_xlabel() and "CPU seconds" in seconds.get_xlabel()
    assert "none" in [label.get_text() for label in flops.get_xticklabels()]  # soup runs no model
    assert "none" not in [label.get_text() for label in seconds.get_xticklabels()]
    for axes in figure.axes:
        texts = [text.get_text() for text in axes.texts]
        assert sorted(texts) == sorted(["Model Soups", "TIES (tuned)", "SLERP", "DAM"])
        # Averages of models whose items are drawn from 0.3 to 0.9, with room for the bars.
        low, high = axes.get_ylim()
        for point in points(experiment.cases[0], costs):
            assert low < point.score.value < high


def test_the_line_and_its_caption_agree_on_who_is_above_it(small):
    # A square, cheaper and better than all others: it is above the line, as the caption says.
    write_cost(small[1] / "case1/merges/slerp/cost.json", cpu_s=0.5, counted={"flops": 1.0})
    path = small[1] / "case1/scores/test/slerp.json"
    scores = json.loads(path.read_text())
    for entry in scores["tasks"].values():
        entry["value"] = 1.0
    path.write_text(json.dumps(scores))
    experiment, costs = found(small)
    caption = figures.titles(experiment)["table1_compute"]
    assert "no cheaper one of them is above it. Square: takes no part in the line" in caption
    for panel in panels.compute(experiment.cases[0], costs, small[2]):
        steps = [float(n) for n in re.findall(r"[\d.]+", panel.path)]
        heights = list(zip(steps[2::2], steps[3::2], strict=False))  # where, and y from there on

        def line(x, heights=heights):
            return min([y for start, y in heights if start <= x + 0.06], default=math.inf)

        for mark in panel.marks:
            above = mark.y < line(mark.x) - 0.06
            assert above == mark.square == (mark.label == "SLERP")
        # Round numbers at the grid's lines, evenly apart, inside.
        levels = [float(text) for _, text in panel.levels]
        gaps = {round(b - a, 6) for a, b in itertools.pairwise(levels)}
        assert 3 <= len(levels) <= 7 and len(gaps) == 1
        assert all(level == round(level, 2) for level in levels)
    path.unlink()
    experiment, _ = found(small)
    without = dataclasses.replace(experiment.cases[0], models=[], more=[])
    caption = figures.titles(dataclasses.replace(experiment, cases=(without,)))["table1_compute"]
    assert "no cheaper merge is above it" in caption and "Square" not in caption


def test_a_folder_without_costs_still_has_its_figures(small, tmp_path):
    for path in small[1].rglob("*cost.json"):
        path.unlink()
    written = figures.write(load(small[0], small[1]), tmp_path)
    assert "table1_compute.png" in [path.name for path in written]
