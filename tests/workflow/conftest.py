"""A copy of the project in an empty folder, and a tiny experiment that runs there for real."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from common.client import VARIABLE, ask
from common.warm import PRELOAD, Worker

ROOT = Path(__file__).resolve().parents[2]
# What Snakemake and the Snakefile import, apart from the project's own modules.
SNAKEMAKE = (
    *("snakemake.cli", "snakemake.report.html_reporter", "docutils.core", "smart_open"),
    *("chardet", "requests", "yte", "pydantic", "pandas", "pyarrow.compute"),
)


def tiny(config: dict) -> dict:
    """Shrink the default experiment until it takes seconds; its models learn nothing."""
    config = copy.deepcopy(config)
    config["name"] = "tiny"
    config.pop("seeds", None)
    config["seed"] = 1
    config["evaluation"] |= {"test_items": 8, "dev_items": 6}
    config["tuning"]["evaluations"] = 2
    config["calibration"]["rows"] = 24
    config["gate"] = {"stop": False}
    for case in config["cases"].values():
        for parent in [case["base"], *case["experts"].values()]:
            parent["train"]["steps"] = 2
    keep = ("soup", "ties", "dare_ties", "ties_tuned", "evolutionary", "dam_paper")
    keep += ("greedy_soup", "model_stock")
    config["methods"] = {row: config["methods"][row] for row in keep}
    config["methods"]["ties_tuned"]["tune"] = [{"density": 0.2}, {"density": 0.5}]
    config["methods"]["evolutionary"]["evolve"] = {"budget": 5}
    config["methods"]["evolutionary"]["cases"] = ["case1"]
    config["methods"]["greedy_soup"]["cases"] = ["case1"]
    config["methods"]["model_stock"]["cases"] = ["case2"]
    config["methods"]["dam_paper"]["set"] |= {"samples": 8}
    ablation = config["ablation"]
    ablation["set"]["samples"] = 8
    ablation["seeds"] = [0, 1]
    ablation["objectives"] = {name: ablation["objectives"][name] for name in ("kl", "entropy")}
    config["studies"]["dam"] = tiny_study(config["studies"]["dam"])
    config["studies"]["cost"] = {
        "cases": ["case1"],
        "seeds": [0, 1],
        "evaluations": [1, 3],
        "rows": ["ties_tuned", "evolutionary", "dam_paper"],
        "dam": "dam_paper",
        "search": "evolutionary",
    }
    config["studies"]["ancestry"] |= {"leaders": ["dare_ties"], "others": ["soup"]}
    return config


def tiny_study(study: dict) -> dict:
    """Keep one setting of every kind, two worlds and 8 rows."""
    keep = ("reference", "soup", "moved", "moved_shared", "swapped", "mixed", "samples_10")
    settings = {name: study["settings"][name] for name in keep}
    settings["samples_10"]["set"] = {"samples": 4, "epochs": 2}
    comparisons = {}
    for name in ("teachers", "data"):
        chosen = [other for other in study["comparisons"][name]["settings"] if other in keep]
        comparisons[name] = study["comparisons"][name] | {"settings": chosen}
    comparisons["data"]["settings"].append("soup")
    return study | {
        "seeds": [1, 2],
        "learning_rates": [0.01, 0.03],
        "resamples": 200,
        "set": study["set"] | {"samples": 8},
        "settings": settings,
        "comparisons": comparisons,
    }


def shorten_training_files(folder: Path) -> None:
    """Have a copy draw 1,000 training rows a role: two steps of training read 64 of them."""
    path = folder / "bottle" / "data.py"
    text, found = re.subn(r"train_rows: int = [\d_]+", "train_rows: int = 1_000", path.read_text())
    assert found == 1, path
    path.write_text(text, encoding="utf-8")


class Project:
    """A copy of the project's files and the commands that a user would type in it.

    Args:
        folder: An empty folder.
        config: The experiment to run.

    Attributes:
        worker: Socket of a warm worker for the commands; None where each run has its own.
        driver: Socket of one that has Snakemake loaded; None where each command loads it.
    """

    worker: str | None = None
    driver: str | None = None

    def __init__(self, folder: Path, config: dict) -> None:
        self.folder = folder
        # Compiled modules and kernels (in __pycache__) travel along: making them costs more than
        # many a step.
        ignore = shutil.ignore_patterns(".*", "results", "tests", "docs")
        shutil.copytree(ROOT, folder, ignore=ignore, dirs_exist_ok=True)
        shorten_training_files(folder)
        self.config = config
        self.write()

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.config["name"]

    def write(self) -> None:
        text = yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False)
        (self.folder / "tiny.yaml").write_text(text, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return kept | ({VARIABLE: self.worker} if self.worker else {})

    def _ask_driver(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run Snakemake in a fork of the driver: its imports cost more than a dry run."""
        path = [str(self.folder), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        with tempfile.TemporaryFile("w+") as output, open(os.devnull) as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            code = ask(
                *(self.driver, "snakemake.cli", arguments, str(self.folder)),
                *(path, self.environment(), streams),
            )
            output.seek(0)
            return code, output.read()

    def start(self, *command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, *command: str) -> tuple[int, str]:
        if self.driver and command[0] == "snakemake":
            return self._ask_driver(command[1:])
        process = self.start(*command)
        output = process.communicate()[0]
        return process.returncode, output

    def reproduce(self) -> str:
        code, output = self.run("workflow", "reproduce", "--config", "tiny.yaml", "--cores", "2")
        assert code == 0, output[-4000:]
        return output

    def snakemake(self, *arguments: str) -> str:
        code, output = self.run("snakemake", *arguments, "--configfile", "tiny.yaml")
        assert code == 0, output[-4000:]
        return output

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return how many jobs of each rule a dry run lists."""
        output = self.snakemake(*arguments, "-n", "--quiet", "rules")
        jobs, counting = {}, False
        for line in output.splitlines():
            words = line.split()
            if words[:2] == ["job", "count"]:
                counting = True
            elif counting and len(words) == 2 and words[1].isdigit():
                jobs.setdefault(words[0], int(words[1]))
        return {rule: count for rule, count in jobs.items() if rule not in ("all", "total")}

    def files(self, pattern: str) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.results)): path.read_bytes()
            for path in sorted(self.results.glob(pattern))
        }


@pytest.fixture(scope="session")
def tiny_config():
    return tiny(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))


def shared_folder(tmp_path_factory) -> Path:
    """Return the folder that all workers of this run of pytest share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def reproduced(tiny_config, tmp_path_factory):
    """A project whose tiny experiment has been run from nothing; tests must not spoil it.

    The first worker that needs it makes it, the others wait and use the same.
    """
    folder = shared_folder(tmp_path_factory) / "reproduced"
    output = folder.with_suffix(".log")
    with FileLock(folder.with_suffix(".lock")):
        if not output.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a failed attempt left
            made = Project(folder, copy.deepcopy(tiny_config)).reproduce()
            output.write_text(made, encoding="utf-8")
    project = Project.__new__(Project)
    project.folder, project.config = folder, copy.deepcopy(tiny_config)
    project.output = output.read_text(encoding="utf-8")
    return project


@pytest.fixture(scope="session")
def worker():
    """The socket of one warm worker for many runs: its imports cost more than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as for a run's own worker
        with Worker((*PRELOAD, "tests.workflow.any_copy")):
            yield os.environ.pop(VARIABLE)  # not for the other tests of this process


@pytest.fixture(scope="session")
def driver():
    """The socket of one warm worker that has loaded Snakemake."""
    with Worker((*SNAKEMAKE, "tests.workflow.any_copy")):
        yield os.environ.pop(VARIABLE)


@pytest.fixture
def project(reproduced, worker, driver, tmp_path):
    """A private copy of the reproduced project, Snakemake's own records included."""
    shutil.copytree(reproduced.folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    copied = Project.__new__(Project)
    copied.folder, copied.config = tmp_path, copy.deepcopy(reproduced.config)
    copied.worker, copied.driver = worker, driver
    return copied
