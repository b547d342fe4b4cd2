"""Kills of every process of a run at every stage: the same command ends with the same bytes.

A chain is one run that is hit several times, each time when it is further, and started again with
the same command until it ends. So every hit falls upon what earlier ones left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.laboratory import (
    Laboratory,
    amount,
    differing,
    processes_of,
    share,
    wait_for,
)

pytestmark = [pytest.mark.faults, pytest.mark.workflow, pytest.mark.timeout(3600)]
CHAIN = 5  # hits of a run
VICTIMS = ("driver", "step", "client", "snakemake", "worker")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGSTOP")
STOPPED = 1.5  # seconds from SIGSTOP to SIGCONT
CORES = 2
COMMAND = ("workflow", "reproduce", "--config", "tiny.yaml", "--cores", str(CORES))


def planned(count):
    """Return chains of hits: at which share of the way, whom, with which signal.

    All pairs of a victim and a signal come before any comes again. Those that the worker gets come
    last in their chain, for a run without it starts each further step anew.
    """
    hits = [(VICTIMS[n % 5], SIGNALS[n % 4]) for n in range(count)]
    chains = [hits[start : start + CHAIN] for start in range(0, count, CHAIN)]
    for number, chain in enumerate(chains):
        # Chains are shifted against each other, so that the points are spread over the whole way.
        shift = (number + 0.5) / len(chains)
        yield [((n + shift) / len(chain), *hit) for n, hit in enumerate(chain)]


@pytest.mark.parametrize("count", [20, 100])
def test_every_victim_gets_every_signal_equally_often(count):
    pairs = [(victim, name) for hits in planned(count) for _, victim, name in hits]
    counts = {pair: pairs.count(pair) for pair in itertools.product(VICTIMS, SIGNALS)}
    assert set(counts.values()) == {count // 20}


def made(project):
    """When each record of finished work was written, by its path."""
    records = {}
    for folder, _, names in os.walk(project.results):  # passes over folders that are being replaced
        for name in names:
            path = Path(folder, name)
            if name.endswith("manifest.json") and ".partial" not in str(path):
                with contextlib.suppress(FileNotFoundError):
                    records[path] = path.stat().st_mtime_ns
    return records


def find(victim, driver):
    """Return a process of a run to hit, or None while there is none."""
    try:
        if victim == "driver":
            return driver
        children = driver.children()
        named = "snakemake" if victim in ("snakemake", "client") else "common.warm"
        tops = [child for child in children if named in " ".join(child.cmdline())]
        if victim in ("snakemake", "worker"):
            return tops[0] if tops else None
        for process in tops[0].children(recursive=True) if tops else []:
            words = process.cmdline()
            if victim == "client" and words[:2] == ["python", "-m"]:
                return process
            # The worker forks a child for each request, and this child forks the step.
            parent = process.parent()
            if victim == "step" and parent is not None and parent.parent() == tops[0]:
                return process
    except psutil.Error:
        pass
    return None


class Run:
    """The command, started in its own session, and what it printed."""

    def __init__(self, project):
        self.log = open(project.folder / "output.txt", "w+", encoding="utf-8")  # noqa: SIM115
        self.driver = psutil.Popen(
            [os.sys.executable, "-m", *COMMAND], cwd=project.folder, env=project.environment(),
            stdout=self.log, stderr=self.log, start_new_session=True,
            # Under nohup the tests themselves have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip

    def over(self):
        return self.driver.poll() is not None

    def output(self):
        self.log.seek(0)
        return self.log.read()


def hit(project, run, at, victim, name):
    """Wait until so much is made, hit the victim, and return whether anything was hit."""
    wait_for(lambda: run.over() or len(made(project)) >= at, 600)
    found = wait_for(lambda: run.over() or find(victim, run.driver), 60, pause=0.003)
    if run.over():
        return False
    try:
        found.send_signal(signal.Signals[name])
        if name == "SIGSTOP":
            time.sleep(STOPPED)
            found.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return False
    return True


def settle(project, run, victim, name):
    """After a hit that may end the run: wait for that, and compare what it says with the rules."""
    if name == "SIGSTOP":
        return
    if victim == "worker":
        # Each further step would start anew, eight CPU seconds each: the user stops the run.
        wait_for(lambda: run.over() or "the warm worker was killed" in run.output(), 60)
        with contextlib.suppress(psutil.NoSuchProcess):  # over in the meantime
            run.driver.send_signal(signal.SIGTERM)
    wait_for(run.over, 300)
    wait_for(lambda: not processes_of(project.folder), 30)
    said = run.output()
    assert "Traceback" not in said, said[-3000:]
    if victim == "driver" and name != "SIGKILL":
        assert f"stopped by {name}" in said
    if victim == "step" and run.driver.returncode:
        number = signal.Signals[name]
        assert f"error: the step was killed by signal {number.value}" in said


def chain(finished, folder, hits, redone):
    """Hit a run where the chain says, start it again each time, and compare what it made at last.

    Args:
        finished: The run that was left in peace.
        folder: Where.
        hits: The chain's hits.
        redone: Takes for each hit how many finished pieces of work were made again.

    Returns:
        The hits that found their victim.
    """
    project = Laboratory.of(finished, folder, results=False)
    project.variables = {"TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    whole, done, known, run = len(made(finished)), [], {}, Run(project)
    try:
        for where, victim, name in hits:
            if run.over():
                run = Run(project)
            if not hit(project, run, max(1, round(where * whole)), victim, name):
                continue
            done.append((victim, name))
            settle(project, run, victim, name)
            now = made(project)
            redone.append(sum(path in now and now[path] != when for path, when in known.items()))
            known = now
        if run.over():
            run = Run(project)
        wait_for(run.over, 600)
    finally:
        if not run.over():
            run.driver.kill()
    assert run.driver.returncode == 0, run.output()[-4000:]
    now = made(project)
    redone.append(sum(now[path] != when for path, when in known.items()))
    assert differing(finished.snapshot(), project.snapshot()) == []
    assert not [path for path in folder.rglob("*") if path.name.endswith((".partial", ".replaced"))]
    assert not list((folder / "tmp").glob("warm-*"))
    wait_for(lambda: not processes_of(folder), 20)
    return done


def test_a_run_that_was_hit_ends_with_the_same_bytes(finished, tmp_path, record_property):
    plans = list(share(list(planned(amount(2, 20, 100)))))
    done, redone = [], []
    for number, hits in enumerate(plans):
        folder = tmp_path / f"chain {number}"
        done += chain(finished, folder, hits, redone)
    assert len(done) >= 0.9 * sum(map(len, plans)), "too few hits found their victim"
    counts = {f"{victim} {name}": done.count((victim, name)) for victim, name in sorted(set(done))}
    record_property("kills: points", len(done))
    record_property("kills: by victim and signal", counts)
    record_property("kills: finished work made again, all points", sum(redone))
    record_property("kills: most of one point", max(redone, default=0))
    # The workflow may not yet have noted what each core's step has just finished.
    assert max(redone, default=0) <= CORES, redone
