"""Names the machine and the code of a run, for the page that shows its results."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from common.files import read_json, write_json

NAME = "machine.json"
COMMIT = "BOTTLE_COMMIT"  # set by a workflow, which asks git once for all its steps
# Of the many flags in /proc/cpuinfo, those that decide which kernels the libraries choose.
_SETS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON", "sve": "SVE"}


def describe(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Describe this machine's processor, as far as results depend on it.

    Args:
        cpuinfo: The kernel's description of the processors.

    Returns:
        `processor`, its name, family and model; `instructions`, sets for vectors; `cores`.
    """
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    sets = [title for flag, title in _SETS.items() if flag in flags]
    return {"processor": name, "instructions": sets, "cores": len(os.sched_getaffinity(0))}


def used(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Describe the processor as far as the libraries may use it.

    A run whose PyTorch is held to AVX2 stands for a processor without AVX-512, so its page must not
    name AVX-512.

    Args:
        cpuinfo: See `describe`.
    """
    found = describe(cpuinfo)
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() != "avx2":
        return found
    sets = [name for name in found["instructions"] if name == "AVX2"]
    held = f"{found['processor']}, libraries held to AVX2,"
    return {
        **found,
        "processor": held if sets != found["instructions"] else found["processor"],
        "instructions": sets,
    }


def commit(root: Path) -> str:
    """Return the checkout's commit, marked if tracked files differ; empty outside a checkout."""

    def git(*arguments: str) -> str:
        # Without optional locks: a commit that somebody makes meanwhile must not fail.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    if COMMIT in os.environ:
        return os.environ[COMMIT]
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except FileNotFoundError:  # git is not installed
        return ""


def record(results: Path, root: Path, started: float) -> None:
    """Add a run's machine, day, commit and seconds to its results, if it finished any step.

    Args:
        results: The results folder; `machine.json` there gets an entry.
        root: The checkout; started: when the run began, seconds since the epoch.
    """
    if any(path.stat().st_mtime >= started for path in results.rglob("*cost.json")):
        path = results / NAME
        day = time.strftime("%Y-%m-%d", time.gmtime(started))
        run = {"date": day, "commit": commit(root), "seconds": round(time.time() - started)}
        write_json(path, [*(read_json(path) if path.exists() else []), used() | run])
