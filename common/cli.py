"""What the command lines share: options that several of them have."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import UserError


def byte_size(text: str) -> int:
    """Read a size as transformers and mergekit write it: 500MB, 5GB, powers of 1000."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMG]?)B?", text, re.IGNORECASE)
    size = found and float(found[1]) * 1000 ** " KMG".index(found[2].upper() or " ")
    if not size or size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 500MB, 5GB or the like")
    return int(size)


def count(text: str) -> int:
    """Read a number from 1 on, of at most six digits."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 on")
    return int(text)


def command_parser(package: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Begin a package's parser, whose help keeps the lines of its texts."""
    return argparse.ArgumentParser(
        prog=f"python -m {package}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_command(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    """Add a command to a parser's, with its help, description and epilog; lines are kept."""
    form = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, formatter_class=form, **texts)


def add_values(parser: Any, option: str, **about: Any) -> None:
    """Add an option that takes several values and is repeatable; `about` as for `add_argument`."""
    parser.add_argument(option, nargs="+", action="extend", default=[], **about)


def pairs(items: Iterable[str], option: str, reserved: str = "base") -> dict[str, Path]:
    """Read ``NAME=PATH`` values of an option, in the order given.

    Raises:
        UserError: An item has another form, or a name is given twice, is reserved or cannot be
            printed.
    """
    found: dict[str, Path] = {}
    for item in items:
        name, _, path = item.partition("=")
        if not name or not path:
            raise UserError(f"{option} {item}: give NAME=PATH")
        if not name.isprintable():
            raise UserError(f"{option}: {name!a} holds unprintable characters; choose another name")
        if name == reserved:
            raise UserError(f"{option} {item}: {name!r} is the base's name; choose another")
        if name in found:
            raise UserError(f"{option} {item}: {name!r} is given twice; choose another name")
        found[name] = Path(path)
    return found


def json_list(text: str | None, option: str) -> list[Any]:
    """Read an option's JSON list with at least one entry; raise a UserError if it is none."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option}: not valid JSON ({error}); give a list") from None
    if not isinstance(value, list) or not value:
        raise UserError(f"{option}: give a list with at least one entry")
    return value
