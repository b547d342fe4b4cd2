"""A cluster for the session, and a small experiment that runs on it and, for comparison, here."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, lacking
from tests.workflow.conftest import ROOT, Project, tiny


def small(config: dict) -> dict:
    """Shrink the tiny experiment to a case, two experts and two merges: 11 jobs to the scores."""
    config = tiny(config)
    kept = ("name", "seed", "evaluation", "gate", "calibration", "cases", "methods")
    config = {key: copy.deepcopy(config[key]) for key in kept}
    config["cases"] = {"case1": config["cases"]["case1"]}
    case = config["cases"]["case1"]
    case["experts"] = {name: case["experts"][name] for name in ("ja", "math_a")}
    config["methods"] = {name: config["methods"][name] for name in ("soup", "ties")}
    return config


@pytest.fixture(scope="session")
def cluster():
    """A running Slurm with one node, two cores and one pretended GPU."""
    if reason := lacking():
        pytest.skip(reason)
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("Snakemake's Slurm executor is not installed: `make slurm`")
    # A socket's path is limited to about a hundred characters, and pytest's folders are deep.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def project(tmp_path):
    """The project's files in an empty folder, with the small experiment."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    return Project(tmp_path / "project", small(config))
