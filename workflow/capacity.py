"""Whether this machine or cluster can give what the steps ask for; checked before any runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, nearest
from evaluation.sql import server

COUNTS = ("gpu", "gpu_mem_mb", "mem_mb", "runtime")  # resources that a step names


@dataclass(frozen=True)
class Ask:
    """What one step asks for."""

    rule: str  # the name of its rule
    gpu: int = 0  # number of GPUs
    gpu_mem_mb: int = 0  # memory on each, MB
    mem_mb: int = 0  # memory of the node, MB
    runtime: int = 0  # minutes
    threads: int = 1  # CPU cores
    partition: str | None = None  # slurm's, None for the cluster's default
    account: str | None = None  # slurm's, None for the user's default


def gpus() -> list[int]:
    """Return the memory in MB of every GPU that this process may use; no torch is needed."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return []
    # nvidia-smi counts in MiB, steps ask for MB.
    found = [int(line) * 2**20 // 10**6 for line in done.stdout.split() if line.isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    named = [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    # A GPU may also be named by its UUID, which says nothing of its memory: take the smallest.
    return [
        found[int(name)] if name.isdigit() else min(found, default=0)
        for name in named
        if not name.isdigit() or int(name) < len(found)
    ]


def check_local(asks: Iterable[Ask], limit: int | None, torch: str | None = None) -> None:
    """Refuse steps that need a GPU where there is none, too small a one, or no limit on them.

    Args:
        asks: What the steps ask for.
        limit: GPUs that Snakemake may give away at a time, None for any number.
        torch: Version of the installed PyTorch; None looks it up.
    """
    on_gpu = [ask for ask in asks if ask.gpu]
    if not on_gpu:
        return
    largest = max(on_gpu, key=lambda ask: ask.gpu_mem_mb)
    told = f"{len(on_gpu)} steps ask for a GPU (such as {largest.rule})"
    elsewhere = "or use a cluster: --profile workflow/profiles/slurm"
    found = gpus()
    if not found:
        raise UserError(
            f"{told}, and nvidia-smi shows none; run on a machine with one, {elsewhere}"
        )
    if limit is None:
        # Snakemake takes a resource without a limit for endless and starts all such steps at once.
        raise UserError(f"{told}, and nothing limits how many run at a time; add --resources gpu=1")
    # Steps take the first GPUs that they see, so that no two may run at a time.
    small = sorted({ask.rule for ask in on_gpu if 2 * ask.gpu <= limit})
    if small:
        given = " ".join(f"{rule}:gpu={limit}" for rule in small)
        raise UserError(
            f"--resources gpu={limit}: without a scheduler, steps at the same time would share one "
            f"GPU; give gpu=1, or give each step all of them (--set-resources {given}), {elsewhere}"
        )
    wants = max(ask.gpu for ask in on_gpu)
    if wants > limit:
        raise UserError(f"a step asks for {wants} GPUs, and the profile gives {limit}; {elsewhere}")
    if wants > len(found):
        raise UserError(f"a step asks for {wants} GPUs, and {len(found)} are visible; {elsewhere}")
    least = min(found[:wants])
    if least < largest.gpu_mem_mb:
        raise UserError(
            f"{largest.rule} needs about {largest.gpu_mem_mb / 1000:.0f} GB of GPU memory, and the "
            f"GPU has {least / 1000:.0f} GB; use a larger one, {elsewhere}"
        )
    if (torch or importlib.metadata.version("torch")).endswith("+cpu"):
        raise UserError(
            f"{told}, and {sys.executable} has PyTorch's CPU build; install requirements-gpu.lock"
        )


def check_evaluators(vllm: bool, postgres: bool) -> None:
    """Refuse evaluations by vLLM or on PostgreSQL where this machine lacks the one they need."""
    if vllm and importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"models are evaluated by vLLM, which {sys.executable} lacks; install "
            "requirements-gpu.lock, or set evaluation: {backend: hf}"
        )
    if postgres and server.programs() is None:
        raise UserError(
            f"SQL-Eval runs on PostgreSQL, and there is none of version {server.MINIMUM} or newer; "
            "install it (Debian: apt-get install postgresql), or set evaluation: {engine: sqlite}"
        )


def _told_by(*command: str) -> str:
    """Run one of Slurm's programs; return what it printed."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]} is not found; start on a login node of the cluster, where Slurm's "
            "programs are, or leave --profile away"
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise UserError(f"Slurm refuses: {lines[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout


def check_slurm(asks: Iterable[Ask]) -> None:
    """Have Slurm itself say, before anything is submitted, whether every step could run.

    Raises:
        UserError: An unknown partition, or the step that no node can hold.
    """
    limits = {}
    for line in _told_by("sinfo", "--noheader", "--format=%R %l").splitlines():
        name, limit = line.split()
        limits[name] = minutes_of(limit)
    # One request of each kind is enough: sbatch takes a moment for each.
    kinds = {(a.partition, a.account, a.gpu, a.mem_mb, a.runtime, a.threads): a for a in asks}
    for ask in kinds.values():
        if ask.partition is not None and ask.partition not in limits:
            raise UserError(
                f"Slurm has no partition {ask.partition!r}{nearest(ask.partition, limits)}; "
                "correct slurm_partition in the profile (sinfo lists them)"
            )
        command = ["sbatch", "--test-only", f"--mem={ask.mem_mb}", f"--time={ask.runtime}"]
        command += [f"--cpus-per-task={ask.threads}"]
        command += [f"--partition={ask.partition}"] if ask.partition else []
        command += [f"--account={ask.account}"] if ask.account else []
        command += [f"--gpus={ask.gpu}"] if ask.gpu else []
        told = (
            f"{ask.rule} ({ask.gpu} GPUs, {ask.mem_mb / 1000:.0f} GB, {ask.runtime} min, "
            f"{ask.threads} cores)"
        )
        # A job beyond its partition's limit is accepted by default, and waits for ever.
        if ask.partition and ask.runtime > limits[ask.partition]:
            raise UserError(
                f"{told}: partition {ask.partition} ends jobs after {limits[ask.partition]:.0f} "
                "min; choose another, or lower the rule's runtime under set-resources"
            )
        try:
            _told_by(*command, "--wrap=true")
        except UserError as error:
            raise UserError(
                f"{told}: {error}; choose another partition, or lower the rule's demands under "
                "set-resources in the profile"
            ) from None


def minutes_of(limit: str) -> float:
    """Read a time limit as sinfo prints it: ``days-hours:minutes:seconds`` or ``infinite``."""
    if limit in ("infinite", "n/a"):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def why_jobs_died(logs: Path, since: float, executable: str) -> str | None:
    """Look in Slurm's logs for a node that lacks the environment, which Snakemake cannot see.

    Args:
        logs: The folder of the executor's logs.
        since: Only logs written after this time count, seconds since 1970.
        executable: The interpreter that every job starts.

    Returns:
        One line for the user, None where the logs show nothing of the kind.
    """
    for path in sorted(logs.rglob("*.log")):
        if path.stat().st_mtime < since:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if re.search(rf"{re.escape(executable)}: (No such file|not found|Permission)", text) or (
            re.search(r"No module named '?snakemake", text)
        ):
            return (
                f"a node of the cluster has no working {executable} (log: {path}); keep the "
                "project and its .venv on a file system that all nodes share, under one path"
            )
    return None
