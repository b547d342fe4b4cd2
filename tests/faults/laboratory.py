"""What the laboratory shares: a small run with every kind of step, its steps, how much is tried.

FAULTS says how much: `short` (for `make test`, the default), `full` (`make test-faults`) or `long`
(`make test-faults-long`). PART=k/n takes the k-th of n shares of what is swept.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from common.client import ask
from tests.workflow.conftest import ROOT, Project, tiny

AMOUNTS = ("short", "full", "long")
AMOUNT = os.environ.get("FAULTS", "short")
PART, PARTS = map(int, os.environ.get("PART", "1/1").split("/"))
CASE, NAME = "case2", "micro"
LOG = "FAULTS_LOG"  # names the file to which the injected worker writes each step
# Measured, or with measured numbers in it: it may differ between two runs.
MEASURED = (
    *("cost.json", "cost.csv", "machine.json", "report.html", "figures/manifest.json"),
    *("_compute.pdf", "_compute.png"),
)
NOT_COMPARED = ("logs/", "store/")


def amount(short: int, full: int, long: int) -> int:
    """Return the number that this run is to try in all its parts together."""
    return dict(zip(AMOUNTS, (short, full, long), strict=True))[AMOUNT]


def share(items: Sequence) -> Sequence:
    """Return those of a sweep's items that belong to this part."""
    return items[PART - 1 :: PARTS]


def micro() -> dict:
    """Shrink the tiny experiment to one case and a row for each way to make a merge."""
    config = tiny(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    config["name"] = NAME
    rows = ("soup", "ties_tuned", "evolutionary", "greedy_soup", "dam_paper")
    config["methods"] = {row: config["methods"][row] for row in rows}
    for row in config["methods"].values():
        row.pop("cases", None)
    config["cases"] = {CASE: config["cases"][CASE]}
    config["ablation"] |= {"case": CASE, "seeds": [0]}
    config["ablation"]["objectives"] = {"kl": config["ablation"]["objectives"]["kl"]}
    config["evaluation"] |= {"test_items": 4, "dev_items": 3, "store": True}
    del config["studies"]
    return config


class Step(NamedTuple):
    """A step of the run, as its command line was called.

    Attributes:
        module: The module whose `main` ran.
        arguments: Its arguments.
        environment: Its variables.
    """

    module: str
    arguments: list[str]
    environment: dict[str, str]

    @property
    def name(self) -> str:
        """What to call it: package, command and what it makes."""
        words = self.arguments
        command = words[0] if words and not words[0].startswith("-") else ""
        return f"{self.module.removesuffix('.cli')} {command} {self.out}".replace("  ", " ")

    @property
    def out(self) -> str:
        """What it makes."""
        return next((after for word, after in zip(self.arguments, self.arguments[1:], strict=False)
                     if word in ("--out", "--out-dir")), "")  # fmt: skip


class Laboratory(Project):
    """A small run in a folder, whose steps may be called one by one in a warm worker."""

    variables: dict[str, str] = {}  # noqa: RUF012

    @classmethod
    def of(cls, other: Laboratory, folder: Path, *, results: bool) -> Laboratory:
        """Copy a laboratory, with or without what its run has made."""
        left_out = () if results else ("results", ".snakemake", "steps.jsonl")
        ignore = shutil.ignore_patterns(*left_out)
        shutil.copytree(other.folder, folder, ignore=ignore, symlinks=True, dirs_exist_ok=True)
        copied = cls.__new__(cls)
        copied.folder, copied.config = folder, copy.deepcopy(other.config)
        return copied

    def environment(self) -> dict[str, str]:
        return super().environment() | self.variables

    def snapshot(self) -> dict[str, str]:
        """Hash every file of the results that two runs must have alike, by its path."""
        found = {}
        for path in sorted(self.results.rglob("*")):
            name = path.relative_to(self.results).as_posix()
            left_out = name.endswith(MEASURED) or name.startswith(NOT_COMPARED)
            if path.is_file() and not left_out:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def steps(self) -> list[Step]:
        """Return the steps of the run in their order."""
        lines = (self.folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return [Step(*json.loads(line)) for line in lines]

    def call(self, step: Step, **variables: str) -> tuple[int, str]:
        """Run a step in the warm worker; return its exit code and all that it printed."""
        path = [str(self.folder), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        # Only the run's own steps are noted, not those that tests call.
        environment = step.environment | {LOG: "", "PYTHONPATH": str(self.folder)} | variables
        with tempfile.TemporaryFile("w+") as output, open(os.devnull) as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            code = ask(self.worker, step.module, step.arguments, str(self.folder), path,
                       environment, streams)  # fmt: skip
            output.seek(0)
            return code, output.read()


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Name what two snapshots do not have alike."""
    names = one.keys() | other.keys()
    return sorted(name for name in names if one.get(name) != other.get(name))


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for(condition, seconds=120.0, pause=0.02):
    """Wait until a condition holds and return what it gave; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
    return value


def run_with(worker: str | None, folder: Path) -> Laboratory:
    """Make a laboratory and run it to its end, its steps in a warm worker that notes them."""
    made = Laboratory(folder, micro())
    made.worker = worker
    made.variables = {LOG: str(folder / "steps.jsonl")} if worker else {}
    made.reproduce()
    return made
