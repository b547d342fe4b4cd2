"""An experiment with one command: locked, resumable, with the tables at its end."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import machine, numerics
from common.client import VARIABLE, WORKFLOW
from common.errors import UserError
from common.warm import STEPS, Worker, die_with_parent
from studies import NAMES, about
from workflow.lock import take

ROOT = Path(__file__).resolve().parent.parent
_STEPS = re.compile(r"\d+ of \d+ steps")
# Snakemake's lines about its housekeeping; its log file keeps them.
_NOISE = re.compile(
    r"Assuming unrestricted|Using shell|Provided cores|Rules claiming|Building DAG|Select jobs|"
    r"Execute \d+ jobs|Finished jobid|Complete log|Elapsed time|Waiting at most|"
    r"RuleException|CalledProcessError|Command 'set -euo|\[\w{3} \w{3} [ \d]+[\d:]+ \d{4}\]|\s*$"
)

_SAID = re.compile(r"(?<!\^)\b(?:error|warning|note): .*", re.DOTALL)  # not where a command has it


class _AskedToEnd(SystemExit):
    """Raised where a signal asks this process to end; holds its exit code."""


def _shown(line: str) -> str:
    """Return what matters of a line of Snakemake's and its steps' output.

    Snakemake writes a message and the end of its last line separately. What a step says at that
    moment continues the line.
    """
    if not _NOISE.match(line):
        return line
    said = _SAID.search(line)
    return said.group() if said else ""


def _snakemake(arguments: Sequence[str]) -> int:
    """Run Snakemake so that it cannot outlive this process, and pass on what matters."""
    parent = os.getpid()
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=lambda: die_with_parent(parent),
    )
    assert process.stdout is not None
    with contextlib.suppress(KeyboardInterrupt):
        try:
            for line in process.stdout:
                if shown := _shown(line):
                    minutes, seconds = divmod(int(time.monotonic() - start), 60)
                    clock = f"[{minutes:02}:{seconds:02}] " if _STEPS.match(shown) else ""
                    print(f"{clock}{shown}", end="", flush=True)
            return process.wait()
        except _AskedToEnd:
            process.kill()
            process.wait()
            raise
    # Ctrl-C reached Snakemake as well; it stops its jobs and then ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.stdout.read()
    process.wait()
    return 130


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """End as after an error where this process is asked to end: nothing continues or is left."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _AskedToEnd(128 + number)

    # `nohup` has SIGHUP ignored, and so it stays.
    asked = [signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in asked}
    for number in asked:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    except _AskedToEnd as asked_by:
        with contextlib.suppress(OSError):  # the terminal may be gone
            name = signal.Signals(int(asked_by.args[0]) - 128).name
            print(
                f"\nstopped by {name}. Finished steps are kept: the same command resumes the run.",
                file=sys.stderr,
                flush=True,
            )
        raise
    finally:
        for number in asked:
            signal.signal(number, before[number])


def _give_a_cache() -> None:
    """Have libraries keep their caches below this folder where the user's place is not writable.

    Snakemake does not start without one, and a container's user often has no home.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=chosen):
            return
    except OSError:
        os.environ["XDG_CACHE_HOME"] = str(Path(".snakemake/cache").absolute())


def _has_a_profile(extra: Sequence[str]) -> bool:
    """Say whether another machine, or a cluster, is described to Snakemake."""
    options = ("--profile", "--executor", "-e")
    given = any(word.split("=")[0] in options for word in extra)
    return given or "SNAKEMAKE_PROFILE" in os.environ


def reproduce(
    config: Path, cores: int | None, extra: Sequence[str], study: str | None = None
) -> int:
    """Run an experiment to its end, or resume an earlier run that stopped.

    Args:
        config: The experiment's configuration.
        cores: How many jobs of one thread run at a time; None for all of this machine's, or what
            the profile in `extra` says.
        extra: More arguments for Snakemake.
        study: Name of a study to run in place of the default experiment.

    Returns:
        The exit code.

    Raises:
        UserError: The configuration is wrong, or another run is at work in this folder.
    """
    from workflow import configuration

    resolved = configuration.load(config)
    out = Path("results") / resolved.name
    if study and study not in resolved.studies.present:
        raise UserError(f"{config}: studies has no {study!r}; add it as in config.yaml")
    with take(), _ending_in_order():
        _give_a_cache()
        start, began = time.monotonic(), time.time()
        # The warm worker imports its libraries with this; they read it once.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        os.environ[WORKFLOW] = str(os.getpid())
        os.environ.update(numerics.environment(resolved.numerics))
        profiled = _has_a_profile(extra)
        common = ["--configfile", str(config)]
        if not profiled or cores is not None:
            common += ["--cores", str(cores or os.cpu_count())]
        # Every Snakemake that works here holds the kernel's lock, so its own is left from a kill.
        if any(Path(".snakemake/locks").glob("*")):
            _snakemake([*common, "--cores", "1", "--unlock", "--quiet", "all"])
        # The steps of a cluster run elsewhere, and large models have no use for a warm start.
        # Who starts many runs, as the tests do, may offer one worker to all of them.
        cold = profiled or VARIABLE in os.environ
        with contextlib.nullcontext() if cold else Worker(steps=STEPS):
            code = _snakemake(
                [
                    *(*common, "--rerun-incomplete", *([f"study_{study}"] if study else [])),
                    *("--quiet", "host", "reason", "rules", *extra),
                ]
            )
        if not profiled:  # a cluster's steps ran on other machines
            machine.record(out, ROOT, began)
        if code != 0:
            print(
                f"\nstopped before the end (exit code {code}); the lines that begin with 'error:' "
                f"say why, and the logs are in {out}/logs. Finished steps are kept: the same "
                "command resumes the run. `snakemake tables figures` shows what there is.",
                file=sys.stderr,
            )
            return code
        if study:
            print(f"\nTables and figures of the study {study}: {out}/studies/{study}")
            return 0
        shown = subprocess.run(
            [
                *(sys.executable, "-m", "report", "show"),
                *("--config", str(out / "config.json")),
                *("--results", str(resolved.scores_from or out), "--out", str(out)),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        ).returncode
        print(f"\n{time.monotonic() - start:.0f} s in all, install aside.")
        return shown


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m workflow --help`."""
    # `scale_study` is short for `study scale`, and so on.
    if arguments and (name := arguments[0].removesuffix("_study")) in NAMES:
        arguments = ["study", name, *arguments[1:]]
    parser = argparse.ArgumentParser(
        prog="python -m workflow",
        description="Run an experiment: merges, evaluations, tables, figures, page. A run "
        "that was stopped, even by kill -9, resumes when it is started again.",
        epilog="examples:\n"
        "  python -m workflow reproduce\n"
        "  python -m workflow reproduce --config my.yaml --cores 8\n"
        "  python -m workflow reproduce --config paper.yaml --profile workflow/profiles/slurm\n"
        "  python -m workflow study dam\n"
        "  python -m workflow scale_study  (the same as: study scale)\n"
        "  python -m workflow check --config my.yaml\n"
        "Single steps: snakemake -n, snakemake tables figures; or python -m merges --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in (
        ("reproduce", "run an experiment to its tables, figures and page"),
        ("study", "run one of the studies that the configuration describes"),
        ("check", "check a configuration"),
        ("schema", "write the schema of configurations and the tables of docs"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        if name == "study":
            abouts = "; ".join(f"{study}: {about(study)}" for study in NAMES)
            command.add_argument("study", choices=NAMES, help=abouts)
        command.add_argument("--config", type=Path, default=ROOT / "config.yaml")
        command.add_argument("--cores", type=int)
    given, extra = parser.parse_known_args(arguments)
    # The configuration's models take longer to import than --help may.
    from workflow import configuration, reference

    if given.command == "check":
        checked = configuration.load(given.config)
        print(f"{given.config}: in order: {checked.summary}; output: results/{checked.name}")
        return 0
    if given.command == "schema":
        reference.write()
        return 0
    return reproduce(given.config, given.cores, extra, getattr(given, "study", None))
