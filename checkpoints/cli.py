"""Command line of the checkpoints: `python -m checkpoints --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import add_command, add_values, byte_size, command_parser, pairs
from common.errors import UserError

_DESCRIPTION = "Look at models on disk, check a merge before it runs, and its result after."

_EPILOG = """\
examples:
  python -m checkpoints show models/base
  python -m checkpoints preflight --base models/base \\
      --experts ja=models/ja math=adapters/math --vocabulary union --out merged/soup
  python -m checkpoints smoke --model merged/soup --parent base=models/base ja=models/ja \\
      --out merged/soup.smoke.json
"""
_PREFLIGHT = """\
examples:
  python -m checkpoints preflight --base models/base --experts ja=models/ja math=models/math
  python -m checkpoints preflight --base models/base --experts lora=adapters/x \\
      --dtype bfloat16 --out merged/x

vocabulary policies, where tokenizers differ:
  refuse        an error that says where they differ (default)
  base          the base's tokenizer; experts' rows in its order, missing rows from the base
  union         the base's ids, then tokens that it lacks; a model's missing rows come from the
                base, or are the mean of the models that have the token
  crop-to-base  experts lose the rows beyond the base's number
"""
_SMOKE = """\
examples:
  python -m checkpoints smoke --model merged/soup --out merged/soup.smoke.json
  python -m checkpoints smoke --model merged/soup --parent ja=models/ja --text sample.txt \\
      --out merged/soup.smoke.json

Ends with an error where a logit of the model is NaN or infinite.
"""
_CONVERT = """\
examples:
  python -m checkpoints convert --model downloads/abel --out models/abel

Pickles are read as tensors alone; nothing in them is run.
"""
_IMPORT = """\
examples:
  python -m checkpoints import-gguf gemma-3-270m-q4_k_m.gguf models/gemma
  python -m checkpoints import-gguf model.gguf models/base --dtype float32

Architectures: llama, qwen2, qwen3, gemma2, gemma3 (text). What the written model would leave out of
the file ends the import.
"""
_ACCEPT = """\
examples:
  python -m checkpoints accept models/ja
  python -m checkpoints accept scores/soup.json

A model, a data folder, a score: what has a manifest is refused once its files differ from it. This
writes the present hashes into the manifest, which keeps the earlier ones. Tables mark accepted
scores, and the workflow makes again what was made from an accepted file.
"""
_EXTRACT = """\
examples:
  python -m checkpoints extract-lora --base models/base --model models/ja --rank 16 --out lora/ja
  python -m checkpoints extract-lora --base models/base --model models/ja --energy 0.95 \\
      --others store --out lora/ja

Writes a PEFT adapter: the truncated SVD, in float64, of the change in each linear layer. layers.csv
has each layer's rank and the squared norm of its change and of the part left out. Changed
embeddings, norms, biases and the output head are refused unless --others stores them complete or
drops them.
"""
_COMPARE = """\
examples:
  python -m checkpoints compare models/ja models/math --base models/base
  python -m checkpoints compare models/ja models/math --base models/base --rows rows.jsonl

Prints the measures that predicted the outcome of merges in the study of scale, each with its rank
correlation there; all, where that study's record is not there. A row of --rows is
{"prompt": text, "answer": text}; without rows, measures of weights alone are printed.
"""
_SHOW = """\
examples:
  python -m checkpoints show models/base
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("checkpoints", _DESCRIPTION, _EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = add_command(commands, "show", help="summarise a model folder", epilog=_SHOW)
    show.set_defaults(run=_show)
    show.add_argument("model", type=Path, metavar="DIR")
    about = "check a merge before it runs"
    check = add_command(commands, "preflight", help=about, epilog=_PREFLIGHT)
    check.set_defaults(run=_preflight)
    check.add_argument("--base", type=Path, metavar="DIR", help="common ancestor of the experts")
    about = "models or LoRA adapters"
    add_values(check, "--experts", required=True, metavar="NAME=DIR", help=about)
    check.add_argument("--out", type=Path, metavar="DIR", help="the folder to be written")
    about = "of the result: float32, bfloat16 ... (the base's)"
    check.add_argument("--dtype", metavar="TYPE", help=about)
    about = "see below (default: refuse)"
    check.add_argument("--vocabulary", default="refuse", metavar="POLICY", help=about)
    about = "finite logits, and perplexity compared with the parents'"
    smoke = add_command(commands, "smoke", help=about, epilog=_SMOKE)
    smoke.set_defaults(run=_smoke)
    smoke.add_argument("--model", type=Path, required=True, metavar="DIR", help="the merged model")
    add_values(smoke, "--parent", metavar="NAME=DIR", help="models to compare with")
    smoke.add_argument("--text", type=Path, metavar="FILE", help="what to read (a built-in text)")
    smoke.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to write")
    about = "accept files that were changed on purpose"
    accept = add_command(commands, "accept", help=about, epilog=_ACCEPT)
    accept.set_defaults(run=_accept)
    accept.add_argument("path", type=Path, metavar="PATH")
    about = "write pickles as safetensors, bit for bit"
    convert = add_command(commands, "convert", help=about, epilog=_CONVERT)
    convert.set_defaults(run=_convert)
    convert.add_argument("--model", type=Path, required=True, metavar="DIR")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR")
    about = "write a GGUF file of llama.cpp as an ordinary model folder"
    gguf = add_command(commands, "import-gguf", help=about, epilog=_IMPORT)
    gguf.set_defaults(run=_import_gguf)
    gguf.add_argument("file", type=Path, metavar="FILE", help="the GGUF file")
    gguf.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    about = "write what a training changed as a LoRA adapter"
    lora = add_command(commands, "extract-lora", help=about, epilog=_EXTRACT)
    lora.set_defaults(run=_extract_lora)
    about = "the model before the training"
    lora.add_argument("--base", type=Path, required=True, metavar="DIR", help=about)
    about = "the model after it"
    lora.add_argument("--model", type=Path, required=True, metavar="DIR", help=about)
    size = lora.add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=int, metavar="R", help="rank of every layer's factors")
    about = "share of each layer's squared change to keep, above 0 and at most 1"
    size.add_argument("--energy", type=float, metavar="SHARE", help=about)
    about = "changed parameters that factors do not hold (refuse)"
    ways = ("refuse", "store", "drop")
    lora.add_argument("--others", choices=ways, default="refuse", help=about)
    lora.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    about = "how alike two models of one base are, before a merge"
    alike = add_command(commands, "compare", help=about, epilog=_COMPARE)
    alike.set_defaults(run=_compare)
    alike.add_argument("one", type=Path, metavar="A", help="a model, or an adapter of the base")
    alike.add_argument("two", type=Path, metavar="B", help="another one")
    about = "what both were fine-tuned from"
    alike.add_argument("--base", type=Path, required=True, metavar="C", help=about)
    about = "texts for the measures that read some; the first 200 are read"
    alike.add_argument("--rows", type=Path, metavar="FILE", help=about)
    about = "of the written weights: bfloat16, float32, float16 (bfloat16)"
    gguf.add_argument("--dtype", default="bfloat16", metavar="TYPE", help=about)
    about = "a folder with the model's own tokenizer, to take instead of the file's"
    gguf.add_argument("--tokenizer", type=Path, metavar="DIR", help=about)
    about = "most bytes of weights in a file: 500MB, 5GB ... (5GB)"
    for command in (check, convert):  # argparse reads a default that is text like a given value
        command.add_argument(
            "--shard-size", type=byte_size, default="5GB", metavar="SIZE", help=about
        )
    about = "accept pytorch_model.bin, as tensors alone"
    for command in (show, check):
        command.add_argument("--allow-pickle", action="store_true", help=about)
    return parser


def _show(arguments: argparse.Namespace) -> None:
    from checkpoints.preflight import amount, counted, describe
    from checkpoints.reading import Checkpoint
    from checkpoints.tokens import read_tokens

    model = Checkpoint(arguments.model, allow_pickle=arguments.allow_pickle)
    sizes = [path.stat().st_size for path in model.shards]
    print(describe(model))
    files = f"{counted(len(sizes), 'file')} ({model.shards[0].name} first)"
    print(f"weights: {amount(sum(sizes))} in {files}")
    tokens = read_tokens(model.path)
    rows = model.config.get("vocab_size", "an unknown number of")
    print(f"tokenizer: {len(tokens.ids):,} tokens" if tokens else "tokenizer: none", end="")
    print(f", {rows} rows in the configuration")
    for note in model.notes:
        print(f"note: {note}")


def _preflight(arguments: argparse.Namespace) -> None:
    from checkpoints.adapters import open_model
    from checkpoints.dtypes import FLOATS, torch_name
    from checkpoints.preflight import check_merge
    from checkpoints.reading import Checkpoint

    pickles = arguments.allow_pickle
    base = arguments.base and Checkpoint(arguments.base, allow_pickle=pickles)
    report = check_merge(
        base,
        {
            name: open_model(path, base, allow_pickle=pickles)
            for name, path in pairs(arguments.experts, "--experts").items()
        },
        out=arguments.out,
        dtype={torch_name(kind): kind for kind in FLOATS}.get(arguments.dtype, arguments.dtype),
        shard_bytes=arguments.shard_size,
        vocabulary=arguments.vocabulary,
    )
    errors = report.errors
    report.errors = errors[1:]  # the first ends the program
    print("\n".join(report.lines()), flush=True)
    if errors:
        raise UserError(errors[0])


def _smoke(arguments: argparse.Namespace) -> None:
    # Reading a wrong argument should not cost the import of transformers.
    parents = pairs(arguments.parent, "--parent", reserved="")
    from checkpoints.smoke import TEXT, lines, smoke

    text = TEXT
    if arguments.text:
        try:
            text = arguments.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--text {arguments.text}: cannot be read as UTF-8 ({error})") from None
    print("\n".join(lines(smoke(arguments.model, parents, arguments.out, text))))


def _import_gguf(arguments: argparse.Namespace) -> None:
    from checkpoints.gguf_file import import_gguf

    values = import_gguf(
        arguments.file,
        arguments.out,
        dtype=arguments.dtype,
        tokenizer=arguments.tokenizer,
        note=lambda text: print(f"note: {text}", file=sys.stderr),
    )
    print(f"imported {values / 1e6:.1f} M parameters -> {arguments.out}")


def _extract_lora(arguments: argparse.Namespace) -> None:
    from checkpoints.extraction import extract_lora

    layers = extract_lora(
        arguments.base,
        arguments.model,
        arguments.out,
        rank=arguments.rank,
        energy=arguments.energy,
        others=arguments.others,
        note=lambda text: print(f"note: {text}", file=sys.stderr),
    )
    squared, left_out = (sum(getattr(x, key) for x in layers) for key in ("squared", "left_out"))
    ranks = sorted({layer.rank for layer in layers})
    span = " to ".join(map(str, dict.fromkeys([ranks[0], ranks[-1]])))
    print(
        f"{arguments.out}: {len(layers)} layers of rank {span}, "
        f"{1 - left_out / squared:.4%} of the squared change"
    )


def _compare(arguments: argparse.Namespace) -> None:
    from checkpoints.comparing import compare, lines, worth_of

    found = compare(arguments.one, arguments.two, arguments.base, arguments.rows)
    print("\n".join(lines(found, worth_of())))


def _accept(arguments: argparse.Namespace) -> None:
    from common.manifest import accept

    found = accept(arguments.path)
    print("\n".join(found) or f"{arguments.path}: as its manifest says; nothing to accept")


def _convert(arguments: argparse.Namespace) -> None:
    from checkpoints.conversion import convert

    values = convert(
        arguments.model,
        arguments.out,
        arguments.shard_size,
        lambda note: print(f"note: {note}", file=sys.stderr, flush=True),
    )
    print(f"{arguments.out}: {values:,} values of {arguments.model} as safetensors")


def main(argv: Sequence[str]) -> int:
    """Run the command line; return its exit code, 0.

    Raises:
        UserError: What the user can fix.
    """
    arguments = build_parser().parse_args(argv)
    arguments.run(arguments)
    return 0
