"""A run that is killed goes on where it was; weights that change in place get their own scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.cli import main

ROOT = Path(__file__).parents[2]
TASKS = ("xwino", "jsquad", "mgsm")
# Kills its own process while the result of the third task is being put in its place.
KILLED = """
import os, signal, sys
from evaluation.cli import main
from evaluation.store import Store

put, done = Store.put, []

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def put_or_die(self, key, result):
    done.append(key["task"])
    if len(done) == 3:
        os.replace = kill
    put(self, key, result)

Store.put = put_or_die
main(sys.argv[1:])
"""


def command(world: Path, model: Path, out: Path, store: Path) -> list[str]:
    suites = ",".join(f"bottle_ja8/{task}" for task in TASKS)
    where = ["--data", str(world / "data"), "--model", f"m={model}", "--suites", suites]
    return [*where, "--out-dir", str(out), "--store", str(store)]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The tasks that a model was asked for."""
    from evaluation.backends.base import Backend

    tasks: list[str] = []
    for kind in ("loglikelihood", "generate_until"):
        plain = getattr(Backend, kind)

        def spy(self, requests, *rest, plain=plain, **more):
            tasks.append(requests[0].task_name.removeprefix("bottle_ja8_"))
            return plain(self, requests, *rest, **more)

        monkeypatch.setattr(Backend, kind, spy)
    return tasks


def scores(out: Path) -> dict:
    return json.loads((out / "m.json").read_text())


def test_a_kill_loses_only_the_task_it_hit(world, tmp_path, asked):
    model, out, store = world / "a", tmp_path / "out", tmp_path / "store"
    arguments = command(world, model, out, store)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL
    assert not list(out.glob("*.json"))
    # What it was writing lies aside, and is not taken for a result.
    whole = sorted(path.name for path in store.iterdir() if not path.name.startswith("."))
    assert [name.split("-")[0] for name in whole] == ["bottle_ja8.jsquad", "bottle_ja8.xwino"]
    assert len(list(store.iterdir())) == 3
    before = {name: (store / name).stat().st_ino for name in whole}
    main(arguments)
    assert asked == ["mgsm"]
    assert {name: (store / name).stat().st_ino for name in whole} == before
    assert len(list(store.iterdir())) == 3  # what was left behind is gone
    asked.clear()
    main(command(world, model, tmp_path / "anew", tmp_path / "other"))
    assert asked == list(TASKS)
    assert (out / "m.json").read_bytes() == (tmp_path / "anew/m.json").read_bytes()
    for folder in (out, tmp_path / "anew"):
        assert (folder / "m.items.jsonl.gz").is_file()


def test_other_weights_in_the_same_place_get_their_own_scores(world, tmp_path, asked, monkeypatch):
    """Same folder, same sizes, same time stamps, and a cache of hashes: still other weights."""
    monkeypatch.setenv("BOTTLE_HASH_CACHE", str(tmp_path / "hashes.json"))
    model, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(world / "a", model)
    main(command(world, model, tmp_path / "first", store))
    weights = model / "model.safetensors"
    at = weights.stat()
    other = (world / "b/model.safetensors").read_bytes()
    assert len(other) == at.st_size
    with open(weights, "r+b") as stream:
        stream.write(other)
    os.utime(weights, ns=(at.st_atime_ns, at.st_mtime_ns))
    asked.clear()
    main(command(world, model, tmp_path / "second", store))
    assert asked == list(TASKS)
    main(command(world, world / "b", tmp_path / "b", tmp_path / "none"))
    assert scores(tmp_path / "second")["tasks"] == scores(tmp_path / "b")["tasks"]
    assert scores(tmp_path / "second")["tasks"] != scores(tmp_path / "first")["tasks"]
    # The first weights again: nothing is asked, and the scores are theirs.
    shutil.copy(world / "a/model.safetensors", weights)
    asked.clear()
    main(command(world, model, tmp_path / "third", store))
    assert asked == []
    assert scores(tmp_path / "third") == scores(tmp_path / "first")
