"""Kills, full disks, lost experts: one line, nothing half-written, the next run finishes."""

import contextlib
import copy
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from workflow.lock import LOCK, take

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
IDENTICAL = ("case*/scores/**/*.json", "tables/*.csv", "tables/*.md", "tables/*.tex")


def deterministic(project):
    return {
        name: content
        for pattern in IDENTICAL
        for name, content in project.files(pattern).items()
        if not name.endswith("cost.json")
    }


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def processes_of(folder):
    """Processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def commands_of(folder):
    """Return the command lines of the processes that work in a folder."""
    lines = []
    for number in processes_of(folder):
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{number}/cmdline").read_text().replace("\0", " "))
    return "\n".join(lines)


@pytest.fixture
def fresh(reproduced, tmp_path):
    """The same experiment, with nothing done yet."""
    shutil.copytree(reproduced.folder, tmp_path, dirs_exist_ok=True)
    for made in ("results", ".snakemake"):
        shutil.rmtree(tmp_path / made)
    copied = type(reproduced).__new__(type(reproduced))
    copied.folder, copied.config = tmp_path, reproduced.config
    return copied


def first_case(project):
    """Leave a project its first case and three rows: a plain, a tuned and a learned one."""
    rows = ("soup", "ties_tuned", "dam_paper")
    project.config = copy.deepcopy(project.config)
    for key in ("ablation", "studies"):
        del project.config[key]
    del project.config["cases"]["case2"]
    project.config["methods"] = {row: project.config["methods"][row] for row in rows}
    project.write()


def start(project, **options):
    command = ("workflow", "reproduce", "--config", "tiny.yaml", "--cores", "2")

    def heed():  # under nohup, or started in the background, the tests themselves ignore them
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return project.start(*command, start_new_session=True, preexec_fn=heed, **options)


@pytest.mark.workflow
@pytest.mark.faults(short=True)
def test_killed_in_the_middle_and_run_again_gives_the_same_results(reproduced, fresh):
    first_case(fresh)
    process = start(fresh)
    # The worst moment: Snakemake holds its lock, jobs are being written.
    wait_for(lambda: len(list(fresh.results.glob("case1/models/*/manifest.json"))) >= 2)
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(fresh.folder), 20)
    assert any((fresh.folder / ".snakemake" / "locks").iterdir())
    # Done long before: Snakemake had recorded it when it went on to the models.
    data = fresh.results / "case1/data/manifest.json"
    when = data.stat().st_mtime_ns
    fresh.reproduce()
    assert data.stat().st_mtime_ns == when, "the data were made twice"
    ours, whole = deterministic(fresh), deterministic(reproduced)
    scores = {name for name in ours if name.startswith("case1/scores/")}
    # With their manifests: four parents on dev and on test items, three rows on test items.
    assert len(scores) == 2 * (2 * 4 + 3)
    assert {name: ours[name] for name in scores} == {name: whole[name] for name in scores}
    again, first = (
        {row["id"]: row for row in csv.DictReader(files["tables/table1.csv"].decode().splitlines())}
        for files in (ours, whole)
    )
    assert again.keys() >= {"base", "ja", *fresh.config["methods"]}
    # A comparison with the highest row depends on the rows that are there.
    compared = {"Avg below the highest", "Avg p", "Avg p (Holm)"}
    for id, row in again.items():
        alone = {name: value for name, value in row.items() if name not in compared}
        assert alone and row.keys() == first[id].keys()
        assert alone == {name: first[id][name] for name in alone}
    assert not list(fresh.results.rglob("*.partial"))


@pytest.mark.workflow
def test_two_runs_from_scratch_give_identical_score_tables(reproduced, fresh):
    fresh.reproduce()
    assert deterministic(fresh) == deterministic(reproduced)
    assert len(deterministic(fresh)) > 20


@pytest.mark.workflow
def test_ctrl_c_stops_everything_and_the_next_run_finishes(reproduced, fresh):
    process = start(fresh)
    wait_for(lambda: list(fresh.results.glob("case*/models/base/manifest.json")))
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert "Traceback" not in output
    wait_for(lambda: not processes_of(fresh.folder), 20)
    fresh.reproduce()
    assert deterministic(fresh) == deterministic(reproduced)


@pytest.mark.workflow
@pytest.mark.faults(short=True)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_asked_to_end_ends_in_order(project, name):
    project.worker = None
    project.config["methods"]["soup"]["set"] = {"weights": [1.0, 2.0, 3.0]}
    project.write()
    process = start(project)
    wait_for(lambda: "common.warm" in commands_of(project.folder))
    process.send_signal(signal.Signals[name])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.Signals[name]
    assert f"stopped by {name}. Finished steps are kept" in output
    assert "Traceback" not in output
    wait_for(lambda: not processes_of(project.folder), 20)
    assert any(count for count in project.planned().values())


@pytest.mark.workflow
@pytest.mark.faults(short=True)
def test_a_run_without_a_home_keeps_its_caches_in_its_folder(project, tmp_path, monkeypatch):
    # As in a container whose user has none; a file in its place holds for root too.
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "Nothing to be done" in project.reproduce()
    assert (project.folder / ".snakemake" / "cache").is_dir()


@pytest.mark.faults(short=True)
def test_a_lock_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(UserError, match=r"^results/\.lock: File exists; make this folder writable"):
        take()


@pytest.mark.workflow
@pytest.mark.faults(short=True)
def test_a_second_run_in_the_same_folder_is_refused_in_one_line(project):
    import fcntl

    with open(project.folder / LOCK, "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = project.run("workflow", "reproduce", "--config", "tiny.yaml")
    assert code == 2
    assert re.fullmatch(
        r"error: another run \(process \d+\) is working in this folder; .*\n", output
    )
    project.reproduce()


@pytest.mark.workflow
@pytest.mark.faults(short=True)
def test_experts_that_learned_nothing_stop_the_experiment(fresh):
    first_case(fresh)
    fresh.config["gate"] = {"stop": True}
    fresh.write()
    code, output = fresh.run("workflow", "reproduce", "--config", "tiny.yaml", "--cores", "2")
    assert code != 0
    assert re.search(r"^error: expert \w+ did not learn its domain", output, re.M)
    assert not list(fresh.results.glob("tables/*.csv"))
    assert not list(fresh.results.glob("case*/merges/*"))


def merge(base, expert, out):
    return subprocess.run(
        [
            *(sys.executable, "-m", "merges", "--method", "ties", "--base", str(base)),
            *("--experts", f"e={expert}", "--out", str(out)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.faults(short=True)
def test_a_full_disk_leaves_nothing_half_written(make_model, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs needs root: {mounted.stderr.strip()}")
    try:
        base = make_model(tmp_path / "base", seed=0)
        expert = make_model(tmp_path / "expert", seed=1)
        done = merge(base, expert, small / "merged")
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "the disk is full" in done.stderr and "free some space" in done.stderr
        assert list(small.iterdir()) == []
        (small / "merged").mkdir()
        (small / "merged" / "manifest.json").write_text("{}")
        assert merge(base, expert, small / "merged").returncode == 2
        assert (small / "merged" / "manifest.json").read_text() == "{}"
    finally:
        subprocess.run(["umount", str(small)], check=True)
