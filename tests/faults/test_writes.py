"""A fault at the n-th write of each step of a run, n swept: told in one line, and nothing is half.

Each step of the finished run is called again with a fault at one call that writes (`injected.py`),
after what it makes was removed. The fault comes once or lasts from then on. The exit code must
not be 0, the output one line, what is there as it was before or as it should be. Then the
step runs without a fault, and all is as in the finished run.
"""

from __future__ import annotations

import collections
import shutil

import pytest

from tests.faults.injected import COUNT, FAULT
from tests.faults.laboratory import amount, differing, share

pytestmark = [pytest.mark.faults(short=True), pytest.mark.workflow, pytest.mark.timeout(3600)]
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
LASTING = ("once", "on")
RESUMED = ".search/state.json"  # of an unfinished search, from which the next call resumes
PHASE = 3  # where the sweep begins


def remove(project, step):
    """Remove what a step makes, and what earlier evaluations stored."""
    out = project.folder / step.out
    if step.arguments[0] in ("tables", "figures", "page", "items", "show"):
        return  # these write into folders in which there is more
    shutil.rmtree(project.results / "store", ignore_errors=True)
    if out.is_dir():
        shutil.rmtree(out)
    else:
        for path in out.parent.glob(f"{out.stem}.*"):
            path.unlink()


def counted(project, step):
    """Return how many calls of a step could fail."""
    remove(project, step)
    place = project.folder / "count.txt"
    code, said = project.call(step, **{FAULT: "0:EIO:once", COUNT: str(place)})
    assert code == 0, said
    return int(place.read_text())


def fails(project, whole, step, at, error, how):
    """Call a step with a fault; return what is wrong with how it ended, and whether it told."""
    remove(project, step)
    left = project.snapshot()
    code, said = project.call(step, **{FAULT: f"{at}:{error}:{how}"})
    wrong, where = [], f"{step.name}, call {at}, {error} {how}"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    now = project.snapshot()
    if code == 0 and differing(whole, now):
        wrong.append(f"{where}: exit code 0, but {differing(whole, now)} differ")
    if code != 0 and (len(lines) != 1 or "Traceback" in said):
        wrong.append(f"{where}: {said[-1500:]}")
    if lines and "results/" not in lines[0]:
        wrong.append(f"{where}: no place in: {lines[0]}")
    half = [
        name
        for name, sha256 in now.items()
        if sha256 not in (whole.get(name), left.get(name)) and not name.endswith(RESUMED)
    ]
    if half:
        wrong.append(f"{where}: half written: {half}")
    code, said = project.call(step)
    if code != 0 or differing(whole, project.snapshot()):
        wrong.append(f"{where}: run again: {code} {differing(whole, project.snapshot())} {said}")
    return wrong, code == 0 and bool(lines)


def test_a_failed_write_is_told_and_leaves_nothing_half_written(copied, record_property):
    steps = [step for step in copied.steps() if step.out and step.arguments[0] != "show"]
    if amount(1, 0, 0):
        steps = [steps[n] for n in (2, 5, 6, 20)]  # training, evaluation, teachers, a merge
    whole, wrong, told, tried = copied.snapshot(), [], 0, collections.Counter()
    calls = [(step, at) for step in steps for at in range(1, counted(copied, step) + 1)]
    every = amount(40, 10, 1)
    for number, (step, at) in enumerate(share(calls[PHASE % every :: every])):
        error, how = ERRORS[number % 4], LASTING[number // 4 % 2]
        found, line = fails(copied, whole, step, at, error, how)
        wrong += found
        told += line
        tried[error] += 1
    record_property("writes: calls that write, all steps", len(calls))
    record_property("writes: faults", tried.total())
    record_property("writes: by error", dict(sorted(tried.items())))
    record_property("writes: said in a line (the others changed nothing)", told)
    assert not wrong, "\n".join(wrong)
