"""A thousand further rows are planned and a million stored items read: time and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tests.faults.laboratory import amount
from tests.workflow.conftest import ROOT

pytestmark = [pytest.mark.faults(short=True), pytest.mark.timeout(1800)]

PLAN = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
print(done.stdout[-3000:], done.stderr[-3000:])
"""
STORE = """
import sys, time
from pathlib import Path
from evaluation.store import Store
store, keys = Store(Path(sys.argv[1])), int(sys.argv[2])
began, count = time.process_time(), 0
for number in range(keys):
    found = store.get({"weights": "0" * 64, "task": f"s/t{number}"})
    count += len(found["items"])
print(count, time.process_time() - began)
"""


def measured(code, *arguments):
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.workflow
def test_a_thousand_further_rows_are_planned(tmp_path, record_property):
    rows = amount(100, 1000, 1000)
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config["name"], config["seeds"] = "many", [1]
    for number in range(rows):
        config["methods"][f"more{number}"] = {
            "label": f"More {number}", "method": "linear", "cases": ["case1"],
            "set": {"weights": [1.0, 2.0, 3.0 + number]},
        }  # fmt: skip
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True))
    words = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--configfile", path]
    first, _, said = measured(PLAN, *words).partition("\n")
    code, seconds, megabytes = map(float, first.split())
    assert code == 0, said
    planned = [line.split() for line in said.splitlines() if line.startswith("merge ")]
    assert int(planned[0][1]) >= rows
    record_property(
        "load: to plan", {"rows": rows, "CPU s": round(seconds, 1), "MB": round(megabytes)}
    )
    assert megabytes < 500  # the seconds are recorded: they are the machine's as well


def test_a_million_stored_items_are_read(tmp_path, record_property):
    from evaluation.store import Store

    files, items = amount(10, 100, 100), 10_000
    store = Store(tmp_path / "store")
    record = {"task": "s/t", "score": 1.0, "answer": 1, "gold": 1, "loglikelihoods": [-1.25, -0.5]}
    rows = [{**record, "id": f"item {number}"} for number in range(items)]
    for number in range(files):
        store.put({"weights": "0" * 64, "task": f"s/t{number}"}, {"items": rows, "entry": {}})
    count, seconds = map(float, measured(STORE, store.folder, files).split())
    assert count == files * items
    record_property("load: to read the store", {"items": int(count), "CPU s": round(seconds, 1)})
    # In proportion to the items: what went through all for each file would take five times as long.
    few = files // 5
    _, part = map(float, measured(STORE, store.folder, few).split())
    assert seconds / files < 2.5 * part / few
