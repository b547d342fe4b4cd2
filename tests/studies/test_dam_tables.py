"""The DAM study's report on a small results folder whose numbers are counted by hand."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from common.errors import UserError
from studies.cli import main
from studies.dam import files, load

CONFIG = {
    "name": "small",
    "seed": 1,
    "cases": {
        "case1": {
            "title": "Case study 1",
            "experts": {"ja": {"domain": ["s/a", "s/b"]}},
            "columns": [
                {"label": "A", "tasks": ["s/a"]},
                {"label": "B_C", "tasks": ["s/b", "s/c"]},
            ],
            "beside": [{"label": "D", "tasks": ["s/d"]}],
        }
    },
    "methods": {},
    "studies": {
        "dam": {
            "case": "case1",
            "seeds": [1, 2],
            "learning_rates": [0.1, 0.2],
            "resamples": 400,
            "set": {"samples": 100},
            "settings": {
                "ref": {"label": "the reference", "set": {}},
                "few": {"label": "10 | rows", "set": {"samples": 10}},
                "soup": {"label": "Soup", "set": {}},
            },
            "comparisons": {
                "data": {
                    "title": "(h) Data",
                    "reference": "ref",
                    "settings": ["few"],
                    "notes": ["A note."],
                    "figure": "samples",
                },
                "other": {
                    "title": "(f) Other",
                    "reference": "ref",
                    "settings": ["soup"],
                    "figure": "bars",
                },
            },
        },
    },
}
# Right answers of four items a task: a, b, c, d. Averages: A and the mean of B and C.
ANSWERS = {
    ("ref", 1): ("1111", "1100", "0000", "1000"),  # (1 + (.5 + 0) / 2) / 2 = .625
    ("ref", 2): ("1110", "1111", "0000", "0000"),  # (.75 + .5) / 2 = .625
    ("few", 1): ("1100", "1000", "0000", "1100"),  # (.5 + .125) / 2 = .3125
    ("few", 2): ("1100", "1111", "0100", "0000"),  # (.5 + .625) / 2 = .5625
}


def write_run(results, setting, seed, answers):
    folder = results / "studies/dam" / setting / f"seed{seed}"
    (folder / "model").mkdir(parents=True)
    records, tasks = [], {}
    for task, row in zip("abcd", answers, strict=True):
        values = [float(sign) for sign in row]
        tasks[f"s/{task}"] = {"value": sum(values) / len(values)}
        records += [
            {"task": f"s/{task}", "id": f"{task}-{number}", "score": value}
            for number, value in enumerate(values)
        ]
    (folder / "test.json").write_text(json.dumps({"tasks": tasks}))
    lines = "\n".join(map(json.dumps, records)) + "\n"
    (folder / "test.items.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    search = {
        "space": {"candidates": [{"learning_rate": 0.1}, {"learning_rate": 0.2}]},
        "chosen": seed - 1,
        "dev_average": 0.25 * seed,
    }
    manifest = {"parameters": {"search": search}}
    (folder / "model" / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def small(tmp_path):
    config, results = tmp_path / "config.json", tmp_path / "results"
    config.write_text(json.dumps(CONFIG))
    for (setting, seed), answers in ANSWERS.items():
        write_run(results, setting, seed, answers)
    return config, results


def table(folder):
    with open(folder / "dam.csv", encoding="utf-8") as stream:
        return {(row["comparison"], row["setting"]): row for row in csv.DictReader(stream)}


def test_averages_differences_and_choices_by_hand(small, tmp_path):
    files.write(CONFIG, small[1], tmp_path / "out")
    found = table(tmp_path / "out")
    ref, few = found["data", "ref"], found["data", "few"]
    assert float(ref["Avg mean"]) == 0.625 and float(ref["Avg sd"]) == 0
    assert [float(few[f"Avg seed {seed}"]) for seed in (1, 2)] == [0.3125, 0.5625]
    assert float(few["Avg mean"]) == 0.4375
    assert float(few["Avg sd"]) == pytest.approx(0.25 / 2**0.5, abs=1e-6)
    # .4375 - .625; worlds: -.3125 and -.0625.
    assert float(few["difference"]) == pytest.approx(-0.1875)
    assert few["worlds higher"] == "0" and ref["difference"] == ""
    assert float(few["low"]) < -0.1875 < float(few["high"])
    assert float(few["dev mean"]) == pytest.approx(0.375)
    assert few["chosen"] == "0.1 0.2"
    assert float(few["B_C mean"]) == pytest.approx((0.125 + 0.625) / 2)
    assert float(few["D mean"]) == pytest.approx(0.25)


def test_the_page_shows_held_out_columns_apart_and_what_was_not_run(small, tmp_path):
    files.write(CONFIG, small[1], tmp_path / "out")
    page = (tmp_path / "out" / "dam.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| Setting"))
    # B_C holds s/c, which is in no expert's domain; D stands beside the average.
    assert [cell.strip() for cell in header.split("|")][-5:-1] == [
        *("Dev average", "B\\_C‡", "D‡", "Learning rates"),
    ]
    (row,) = [line for line in page.splitlines() if line.startswith("| 10 ")]
    assert row.startswith("| 10 \\| rows | .438 ±.177 | -.188 [") and "| 0/2 | .375 |" in row
    assert "A note." in page and "Soup: run in 0 of 2 worlds." in page
    (row,) = [line for line in page.splitlines() if line.startswith("| Soup")]
    assert row.count("–") == 7


def test_equal_runs_give_equal_bytes_and_every_figure(small, tmp_path):
    written = files.write(CONFIG, small[1], tmp_path / "a")
    again = files.write(CONFIG, small[1], tmp_path / "b")
    assert [path.name for path in written] == [
        *("dam.csv", "dam.md", "dam_data.png", "dam_other.png"),
    ]
    for one, other in zip(written, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "a" / "manifest.json").is_file()


def test_items_that_say_the_same_in_two_worlds_are_one_cluster(small):
    results = small[1]
    study = load.load(CONFIG, results)
    (first, *_) = load.strata_of(study, [("few", "ref")])
    assert first.clusters.tolist() == list(range(8))
    for world, start in (
        ("case1", 0),
        ("studies/dam/case1_seed2", 2),
    ):  # items 2, 3 of one are 0, 1 of other
        path = results / world / "data" / "test" / "s"
        path.mkdir(parents=True)
        for task in "abcd":
            rows = [
                {"id": f"{task}-{n}", "prompt": f"{n + start}?", "choices": ["x", "y"], "gold": 1}
                for n in range(4)
            ]
            (path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = load.load(CONFIG, results)
    (first, second, third) = load.strata_of(study, [("few", "ref")])
    assert first.clusters.tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    # few - ref of task a: world 1 loses items 2 and 3, world 2 loses item 2.
    assert first.differences.tolist() == [[0, 0, -1, -1, 0, 0, -1, 0]]
    assert (first.weight, second.weight, third.weight) == (0.5, 0.25, 0.25)


def test_worlds_of_unequal_size_count_alike(small):
    results = small[1]
    for setting in ("few", "ref"):
        path = results / "studies/dam" / setting / "seed2" / "test.items.jsonl.gz"
        records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        kept = [record for record in records if record["id"] not in ("a-1", "a-3")]
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, kept)).encode()))
        scores = path.with_name("test.json")
        content = json.loads(scores.read_text())
        values = [record["score"] for record in kept if record["task"] == "s/a"]
        content["tasks"]["s/a"]["value"] = sum(values) / 2
        scores.write_text(json.dumps(content))
    study = load.load(CONFIG, results)
    (first, *_) = load.strata_of(study, [("few", "ref")])
    # World 1: two of four items lost, -.5; world 2: one of two, -.5.
    assert first.differences.mean() == pytest.approx(-0.5)
    assert first.differences[0].tolist() == pytest.approx([0, 0, -0.75, -0.75, 0, -1.5])


def test_bad_input_is_told_in_one_line(small, tmp_path):
    results = small[1]
    with pytest.raises(UserError, match=r"no scores in .*run `python -m workflow study dam` first"):
        load.load(CONFIG, tmp_path / "nowhere")
    scores = results / "studies/dam/few/seed1/test.json"
    before = scores.read_text()
    scores.write_text(before.replace("0.5", "0.4"))
    with pytest.raises(UserError, match="the score of s/a is no mean over items"):
        load.load(CONFIG, results)
    scores.write_text(before)
    items = scores.with_name("test.items.jsonl.gz")
    content = items.read_bytes()
    items.write_bytes(content[:-20])
    with pytest.raises(UserError, match="damaged"):
        load.load(CONFIG, results)
    items.write_bytes(gzip.compress(gzip.decompress(content).replace(b"a-3", b"a-9")))
    with pytest.raises(UserError, match="other items of s/a"):
        files.write(CONFIG, results, tmp_path / "out")


def test_the_command_writes_the_study(small, tmp_path, capsys):
    config, results = small
    out = tmp_path / "out"
    arguments = ("dam", "--config", config, "--results", results, "--out", out)
    assert main([str(argument) for argument in arguments]) == 0
    assert "4 files of the study dam" in capsys.readouterr().out
