"""The command `python -m paper calibration`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from common import manifest
from common.cli import add_command
from common.errors import UserError
from common.files import sha256_file, write_jsonl
from paper.calibration.convert import TEMPLATES, Layout, convert

_DESCRIPTION = """\
Choose rows of a fetched data set, put them into a template, and write them as the JSON lines that
DAM and AdaMerging read: {"task", "prompt", "answer", "eos"}. The choice depends on the seed alone.
"""

_EPILOG = """\
examples:
  python -m paper fetch metamath --out data/metamath
  python -m paper calibration --source data/metamath --prompt query --answer response \\
      --rows 1729 --seed 1 --tokenizer models/base --max-length 2048 --out metamath.jsonl
  python -m paper calibration --source data/wikipedia_ko --answer text --template plain \\
      --rows 1729 --out korean.jsonl

OUT.manifest.json next to the file records the hashes of all files read and written, and how many
rows were skipped as empty or too long, or cut.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command ``calibration`` to a parser's."""
    about = "make calibration rows from a fetched data set"
    parser = add_command(
        commands, "calibration", help=about, description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=_run)
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--prompt", default="", metavar="A,B", help="columns of the prompt (none: plain text)"
    )
    parser.add_argument("--answer", required=True, metavar="A,B", help="columns of the answer")
    parser.add_argument("--joiner", default="\n\n", help="between two columns (an empty line)")
    parser.add_argument("--template", default="alpaca", choices=sorted(TEMPLATES))
    parser.add_argument("--no-eos", action="store_true", help="no end-of-sequence token")
    parser.add_argument("--rows", type=int, required=True, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="model that counts tokens")
    parser.add_argument("--max-length", type=int, metavar="N", help="most tokens of a sample")
    parser.add_argument("--task", default="calibration", help="name written into each row")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")


def _run(given: argparse.Namespace) -> None:
    if given.rows < 1:
        raise UserError(f"--rows {given.rows} is none; give 1 or more")
    if (given.max_length is None) != (given.tokenizer is None):
        raise UserError("--max-length and --tokenizer belong together; give both or neither")
    if given.max_length is not None and given.max_length < 8:
        raise UserError(f"--max-length {given.max_length} leaves no room for a sample; give more")
    prompt, answer = (tuple(filter(None, text.split(","))) for text in (given.prompt, given.answer))
    layout = Layout(prompt, answer, given.joiner, given.template, not given.no_eos)
    tokenizer = None
    if given.tokenizer is not None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                given.tokenizer, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError):
            raise UserError(
                f"--tokenizer {given.tokenizer}: no model's folder with a tokenizer; correct it"
            ) from None
    manifest.check_recorded(given.source)
    rows, counts = convert(
        given.source,
        layout,
        rows=given.rows,
        seed=given.seed,
        task=given.task,
        tokenizer=tokenizer,
        max_length=given.max_length,
    )
    write_jsonl(given.out, rows)
    # All files are recorded, not only those read: the folder's download is one artefact.
    files = sorted(path for path in given.source.rglob("*") if path.is_file())
    manifest.write_manifest(
        given.out.with_suffix(".manifest.json"),
        kind="calibration",
        parameters={**asdict(layout), "rows": given.rows, "max_length": given.max_length},
        inputs={str(path.relative_to(given.source)): path for path in files},
        outputs={given.out.name: sha256_file(given.out)},
        seed=given.seed,
        code=("paper/calibration/convert.py",),
        extra=counts,
    )
    print(
        f"{given.out}: {counts['chosen']} of {counts['rows']} rows ({counts['empty']} empty and "
        f"{counts['too_long']} too long were skipped, {counts['cut']} cut)"
    )
