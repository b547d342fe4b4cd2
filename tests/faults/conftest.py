"""The laboratory's run, made once, and the figures that its tests report at the end."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from common.client import VARIABLE
from common.warm import PRELOAD, Worker
from tests.faults import laboratory
from tests.workflow.conftest import shared_folder

RECORD = "FAULTS_RECORD"  # names a JSON file for the figures


@pytest.fixture(scope="session")
def laboratory_worker():
    """The socket of a warm worker that can make a step's writes fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with Worker((*PRELOAD, "tests.faults.injected")):
            yield os.environ.pop(VARIABLE)  # not for the other tests of this process


@pytest.fixture(scope="session")
def finished(laboratory_worker, tmp_path_factory):
    """The small run, finished; tests must not spoil it. The first worker makes it for all."""
    folder = shared_folder(tmp_path_factory) / "laboratory"
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".flock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            laboratory.run_with(laboratory_worker, folder)
            done.touch()
    made = laboratory.Laboratory.__new__(laboratory.Laboratory)
    made.folder, made.config = folder, laboratory.micro()
    made.worker = laboratory_worker
    return made


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """A finished run that the tests of one file may damage, if they mend it again."""
    copy = laboratory.Laboratory.of(finished, tmp_path_factory.mktemp("copied"), results=True)
    copy.worker = finished.worker
    return copy


def pytest_terminal_summary(terminalreporter):
    """Print what was tried and found, and write it where FAULTS_RECORD says."""
    found = {}
    for report in terminalreporter.stats.get("passed", []):
        if "tests/faults/" in report.nodeid:
            for name, value in report.user_properties:
                found[name] = value
    if not found:
        return
    terminalreporter.section("faults that were injected")
    for name, value in sorted(found.items()):
        terminalreporter.write_line(f"{name}: {value}")
    if place := os.environ.get(RECORD):
        path = Path(place)
        earlier = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps(earlier | found, indent=1, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
