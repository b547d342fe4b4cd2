"""The command `python -m paper rehearse`."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from common.cli import add_command
from common.errors import UserError
from common.sources import ROOT

VLLM = ROOT / ".venv-vllm"  # complete where the stamp of `make` is in it
STAMP = "installed.lock"
_DESCRIPTION = """\
Make a folder in which the paper's configuration runs, offline and on a CPU: OUT/mirror with
a tiny random model for each checkpoint, of the same architecture, kind of tokenizer and vocabulary
handling, and a small file of the same columns for each calibration data set; OUT/benchmarks with
the benchmarks' files; and OUT/config.yaml, the paper's configuration on these, with few rows, items
and seeds. Everything goes through the same rules as in the real run. `make rehearse-paper` makes
the folder and runs it.
"""

_EPILOG = """\
examples:
  python -m paper rehearse --out rehearsal-run
  python -m workflow reproduce --config rehearsal-run/config.yaml

A folder that an earlier call made is kept, so that a stopped run can be resumed. Benchmarks have
their real rows where local copies are given, in files that `python -m evaluation data --source`
reads; the others are hand-made and marked so in all that is made from them.
"""
_PROBE = "import importlib.util, torch; raise SystemExit(importlib.util.find_spec('vllm') is None)"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command ``rehearse`` to a parser's."""
    about = "make tiny stand-ins for all that the paper's configuration fetches"
    parser = add_command(commands, "rehearse", help=about, description=_DESCRIPTION, epilog=_EPILOG)
    parser.set_defaults(run=_run)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, default=ROOT / "paper.yaml", metavar="FILE")
    parser.add_argument(
        "--benchmarks",
        type=Path,
        default=os.environ.get("BOTTLE_DATA"),
        metavar="DIR",
        help="local copies of real benchmark files (BOTTLE_DATA); default: all rows hand-made",
    )
    parser.add_argument(
        "--engine",
        choices=("sqlite", "postgres"),
        help="what runs the SQL; default: postgres where it is installed",
    )
    parser.add_argument(
        "--vllm",
        type=Path,
        metavar="PYTHON",
        help="the Python of an environment with vLLM, for two models of each case; default: "
        ".venv-vllm, where it is installed",
    )


def _engine(asked: str | None) -> tuple[str, str]:
    """Choose the engine that runs the SQL, and say which."""
    if asked is None:
        from evaluation.sql.server import programs

        if programs() is None:
            return "sqlite", "SQL runs on SQLite: no PostgreSQL is installed"
    return asked or "postgres", f"SQL runs on {'SQLite' if asked == 'sqlite' else 'PostgreSQL'}"


def _vllm(asked: Path | None) -> tuple[Path | None, str]:
    """Look for an environment with vLLM, and say which models it will evaluate."""
    python = asked or (VLLM / "bin" / "python" if (VLLM / STAMP).is_file() else None)
    if python is None:
        return None, f"all models are evaluated by hf: vLLM is not installed in {VLLM.name}"
    found = (
        os.access(python, os.X_OK)
        and not subprocess.run([python, "-c", _PROBE], capture_output=True, check=False).returncode
    )
    if not found:
        raise UserError(f"{python}: no Python with vLLM and PyTorch; correct --vllm, or install it")
    return python, "two models of each case are evaluated by vLLM, the others by hf"


def _run(given: argparse.Namespace) -> None:
    if given.benchmarks is not None and not given.benchmarks.is_dir():
        raise UserError(f"--benchmarks {given.benchmarks}: no such folder; correct the path")
    from paper.rehearsal.making import Choices, make

    engine, sql = _engine(given.engine)
    vllm, backends = _vllm(given.vllm)
    real = make(given.config, given.out, Choices(given.benchmarks, engine, vllm))
    rows = f"real rows: {', '.join(real)}" if real else "real rows: none, no local copies given"
    print(f"{given.out}/config.yaml: the paper's configuration on stand-ins")
    print(f"  {rows}\n  {sql}\n  {backends}")
