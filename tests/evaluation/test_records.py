"""Files of records, the bar, and averages against what the published harness reports."""

from __future__ import annotations

import sys

import pytest

from common.errors import UserError
from evaluation.bar import Bar
from evaluation.items import read_records, write_records

ITEMS = [
    {"id": "ä", "answer": "猫\n犬\u2028", "values": {"f1": 0.1}},
    {"id": 2, "ll": [-0.1, -1e-9]},
]


def test_records_come_back_and_equal_records_are_equal_bytes(tmp_path):
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    write_records(first, ITEMS)
    write_records(second, read_records(first))
    assert read_records(second) == ITEMS
    assert first.read_bytes() == second.read_bytes()


def test_damaged_records_are_told(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with pytest.raises(UserError, match="no such file"):
        read_records(path)
    write_records(path, ITEMS)
    for damage in (path.read_bytes()[:-9], b"no gzip", b""):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="damaged"):
            read_records(path)


def test_a_bar_in_a_terminal_and_silence_in_a_log(capsys, monkeypatch):
    bar = Bar("m")
    bar.start("ja8/jnli", 6)
    bar.update(6)
    bar.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar.start("ja8/jnli", 6)
    bar.update(4)
    bar.start("ja8/mgsm", 2)
    bar.update(2)
    bar.close()
    shown = capsys.readouterr().err
    assert "m: ja8/jnli" in shown and "/6" in shown and "m: ja8/mgsm" in shown


def test_every_request_is_counted_once_on_the_bar(world):
    from evaluation.backends.hf import load_model
    from evaluation.harness import Harness

    class Counts:
        def __init__(self) -> None:
            self.tasks: dict[str, list[int]] = {}

        def start(self, task: str, requests: int) -> None:
            self.now = self.tasks[task] = [requests, 0]

        def update(self, requests: int) -> None:
            self.now[1] += requests

    counts = Counts()
    names = ["bottle_ja8/jcomqa", "bottle_ja8/jsquad", "bottle_sql_eval"]
    Harness(world / "data", names, "test", world / "tokenizer", batch_size=7, bar=counts).evaluate(
        load_model(world / "a")
    )
    assert counts.tasks == {
        "bottle_ja8/jcomqa": [120, 120],
        "bottle_ja8/jsquad": [13, 13],
        "bottle_sql_eval/sql": [5, 5],
    }


def test_the_average_of_ja8_is_the_one_the_published_harness_reports():
    from evaluation.items import suite_means
    from evaluation.suites import select

    # Llama 2 7B, prompt 0.3, in the published result file; its average is given as 42.96.
    published = {
        "jcommonsenseqa": 0.5264,
        "jnli": 0.2823,
        "marc_ja": 0.8605,
        "jsquad": 0.5840,
        "jaqket_v2": 0.3883,
        "xlsum_ja": 0.0932,
        "xwinograd_ja": 0.6465,
        "mgsm": 0.056,
    }
    tasks = select(["ja8"])
    entries = {
        task.name: {
            "value": published[task.id],
            "items": 10,
            "metrics": {task.metric: {"value": published[task.id]}},
        }
        for task in tasks
    }
    means = suite_means(tasks, entries)["ja8"]
    assert means["primary"]["mean"] == pytest.approx(0.4296, abs=1e-4)
    assert (means["acc"]["tasks"], means["exact_match"]["tasks"]) == (5, 2)
