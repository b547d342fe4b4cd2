"""The same rules through a real Slurm: results, retries, GPUs, and refusals told in a line."""

import itertools
import json
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from common import client

pytestmark = pytest.mark.slurm
TARGETS = [f"results/tiny/case1/scores/test/{row}.json" for row in ("soup", "ties")]
# A look at the jobs every two seconds, for a test; a cluster's administrators would not like it.
QUICK = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5")


def start(project, cluster, *arguments, **environment):
    command = (sys.executable, "-m", "snakemake", *arguments, "--configfile", "tiny.yaml")
    return subprocess.Popen(
        [*command, "--profile", "workflow/profiles/slurm", *QUICK],
        cwd=project.folder,
        env={k: v for k, v in cluster.environment.items() if k != "PYTHONPATH"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(project, cluster, *arguments, **environment):
    process = start(project, cluster, *arguments, **environment)
    try:
        output = process.communicate(timeout=2400)[0]
    finally:
        process.kill()  # does nothing to one that has ended
    return process.returncode, output


def seconds(job, name):
    return datetime.fromisoformat(job[name]).timestamp()


def kill_one(cluster, rule, killed, end):
    """Cancel the first job of a rule once it has run for two seconds."""
    while not killed and not end.is_set():
        for job in cluster.jobs():
            if job["JobState"] == "RUNNING" and rule in job.get("Comment", ""):
                time.sleep(2)
                cluster.ask("scancel", job["JobId"])
                killed.append(job["JobId"])
                break
        time.sleep(0.3)


@pytest.mark.timeout(3000)  # minutes on quiet cores
def test_a_cluster_s_results_are_the_local_ones_though_a_job_is_killed(project, cluster, tmp_path):
    killed, end = [], threading.Event()
    killer = threading.Thread(target=kill_one, args=(cluster, "bottle_expert", killed, end))
    killer.start()
    try:
        code, output = run(project, cluster, *TARGETS, "--set-resources", "evaluate:gpu=1")
    finally:
        end.set()
        killer.join()
    assert code == 0, output[-4000:]
    jobs = cluster.jobs()
    (cancelled,) = [job for job in jobs if job["JobState"] == "CANCELLED"]
    assert cancelled["JobId"] in killed
    again = [
        job
        for job in jobs
        if job["Comment"] == cancelled["Comment"] and job["JobState"] == "COMPLETED"
    ]
    assert len(again) == 1
    # A retry asks for more; Slurm's record says what was asked.
    assert memory(again[0]) == pytest.approx(1.5 * memory(cancelled), abs=1)
    assert minutes(again[0]) == 2 * minutes(cancelled)
    assert len(jobs) == 12 and {job["JobState"] for job in jobs} == {"COMPLETED", "CANCELLED"}
    gpu = [job for job in jobs if job.get("TresPerJob") == "gres:gpu:1"]
    assert len(gpu) == 5 and all("rule_evaluate" in job["Comment"] for job in gpu)
    gpu.sort(key=lambda job: seconds(job, "StartTime"))
    for before, after in itertools.pairwise(gpu):
        assert seconds(before, "EndTime") <= seconds(after, "StartTime")
    compare(project, tmp_path / "here")


def memory(job):
    return float(job["MinMemoryNode"].removesuffix("M"))


def minutes(job):
    hours, minutes, _ = job["TimeLimit"].split(":")
    return 60 * int(hours) + int(minutes)


def compare(project, folder):
    """Run the same experiment here, through the warm worker, and compare all that both made."""
    here = type(project)(folder, project.config)
    here.reproduce()
    names = {str(path.relative_to(project.results)) for path in project.results.rglob("*.json")}
    weights = {name for name in names if name.endswith("manifest.json") and "scores" not in name}
    scores = {name for name in names if "scores" in name and name.count(".") == 1}
    assert len(weights) >= 6 and len(scores) == 5
    for name in weights | scores:
        ours, theirs = (json.loads((p.results / name).read_text()) for p in (project, here))
        assert ours == theirs, name
    for path in sorted(project.results.rglob("*.safetensors")):
        assert path.read_bytes() == (here.results / path.relative_to(project.results)).read_bytes()


@pytest.mark.parametrize(
    ("option", "asked", "told"),
    [
        ("--default-resources", "slurm_partition=mian", "partition 'mian' (did you mean 'main'"),
        ("--default-resources", "slurm_partition=short", "short ends jobs after 10 min"),
        ("--set-resources", "evaluate:gpu=2", "evaluate (2 GPUs"),
        ("--set-resources", "merge:mem_mb=999000", "merge (0 GPUs, 999 GB"),
    ],
)
def test_what_the_cluster_cannot_give_is_told_before_a_job_is_submitted(
    project, cluster, option, asked, told
):
    before = len(cluster.jobs())
    code, output = run(project, cluster, *TARGETS, option, asked)
    assert code != 0 and "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert told in line
    assert len(cluster.jobs()) == before and not list(project.results.glob("case1/*"))


def test_a_node_without_the_environment_is_told(project, cluster):
    target = "results/tiny/case1/data/manifest.json"
    hidden = Path(sys.executable).parent.parent
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("no folder can be hidden from the node here: no permission to mount")
    cluster.stop_node()
    cluster.start_node(hide=hidden)
    try:
        code, output = run(project, cluster, target, "--retries", "0")
        assert code != 0 and "Traceback" not in output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert f"no working {sys.executable}" in line and "all nodes share" in line
    finally:
        cluster.stop_node()
        cluster.start_node()
    # Mended, the same command goes on; a step that took this process for the workflow's would end.
    nobody = str(1 + int(Path("/proc/sys/kernel/pid_max").read_text()))
    code, output = run(project, cluster, target, **{client.WORKFLOW: nobody})
    assert code == 0, output[-3000:]
    assert (project.folder / target).is_file()
