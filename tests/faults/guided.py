"""Give a reader inputs that are guided by the lines they reach, with atheris.

    pip install --target FOLDER atheris==3.0.0     # not a dependency
    PYTHONPATH=FOLDER python -m tests.faults.guided adapter --seconds 60

atheris changes bytes, from which Hypothesis draws documents as it does for `test_fuzz.py`, with the
same checks. Bytes that reach new lines of ours are tried again with further changes. Small ones are
kept in `corpus/READER.txt`, and `test_fuzz.py` gives them to the reader in every run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.test_fuzz import (
    ALL_TAKEN,
    CORPUS,
    OF_MODELS,
    OF_OTHERS,
    OF_RESULTS,
    make_models,
    reader_of,
    trial,
)

READERS = (*OF_OTHERS, *OF_RESULTS, "answers", *ALL_TAKEN, *OF_MODELS)
OURS = ("bottle", "checkpoints", "common", "evaluation", "merges", "report", "workflow")
MOST, LARGEST = 20, 256  # inputs that are kept of a reader, and bytes of one


def child(reader: str, found: Path, seconds: int) -> None:
    """Fuzz one reader until the time is over; atheris ends the process."""
    import atheris

    # Instrumented are those of our modules that the reader is the first to import.
    with atheris.instrument_imports(include=list(OURS)):
        models = make_models(Path(tempfile.mkdtemp())) if reader in OF_MODELS else None
        each, _ = trial(reader_of(reader, Path(tempfile.mkdtemp()), models), 1)
        each.hypothesis.fuzz_one_input(bytes(4096))
    flags = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-print_final_stats=1"]
    os.chdir(tempfile.mkdtemp())
    atheris.Setup([sys.argv[0], *flags, str(found)], each.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main() -> None:
    """Fuzz readers, each in a separate process, and keep small inputs of what each found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"all: {', '.join(READERS)}")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="of each (60)")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := [name for name in given.readers if name not in READERS]:
        sys.exit(f"no reader {unknown[0]}; give some of {', '.join(READERS)}")
    if given.into:
        child(given.readers[0], given.into, given.seconds)
    for reader in given.readers or READERS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.faults.guided", reader, "--into", folder]
            done = subprocess.run(
                [*command, "--seconds", str(given.seconds)], capture_output=True, text=True
            )
            lines = done.stderr.splitlines()
            stats = [line for line in lines if "number_of_executed_units" in line or "cov:" in line]
            print(f"{reader}: exit code {done.returncode}; {' '.join(stats[-2:])}", flush=True)
            if done.returncode:
                sys.exit("\n".join(lines[-40:]))
            found = {path.read_bytes().hex() for path in Path(folder).iterdir()}
            kept = sorted(
                (one for one in found if len(one) <= 2 * LARGEST), key=lambda one: (len(one), one)
            )
            CORPUS.mkdir(exist_ok=True)
            (CORPUS / f"{reader}.txt").write_text("\n".join(kept[-MOST:]) + "\n")


if __name__ == "__main__":
    main()
