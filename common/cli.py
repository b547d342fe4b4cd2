"""How every `python -m PACKAGE` starts: here, or in a worker that is already warm."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import NoReturn

from common import warm
from common.calling import call


def byte_size(text: str) -> int:
    """Read a size as transformers and mergekit write it: 500MB, 5GB, powers of 1000."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMG]?)B?", text, re.IGNORECASE)
    size = found and float(found[1]) * 1000 ** " KMG".index(found[2].upper() or " ")
    if not size or size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 500MB, 5GB or the like")
    return int(size)


def command_parser(package: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Begin a package's parser, whose help keeps the lines of its texts.

    Args:
        package: Its name.
        description: What the command does.
        epilog: Examples, and what else is to be known.

    Returns:
        The parser, without arguments.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {package}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(module: str) -> NoReturn:
    """End the process with the exit code of a package's command line.

    Importing torch, transformers and lm-eval takes a process about eight seconds. Where a warm
    worker is offered (`common.warm`), the work is done in a fork of it instead; result and
    output are the same.

    Args:
        module: Name of the module that holds `main(arguments) -> int`.
    """
    if os.environ.get(warm.VARIABLE):
        code = warm.request(module, sys.argv[1:])
        if code is not None:
            sys.exit(code)
    warm.end_with_the_workflow()
    sys.exit(call(module, sys.argv[1:]))
