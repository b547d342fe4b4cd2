"""YAML from others: read as plain data, within bounds that an honest file does not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

_INPUT = Path("/dev/stdin")  # may be a pipe: a user or a step of the workflow fills it
_LARGEST = 1 << 20  # bytes; the longest configuration here has 30 kB
_DEEPEST = 64  # collections in one another; the deepest configuration here has 7
# What PyYAML lets through where a value is not what its form or its tag says.
_MALFORMED = (
    *(yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError),
    RecursionError,
)


def _check(text: str, aliases: bool) -> None:
    """Refuse aliases and deep nesting before anything is built from them.

    Raises:
        ValueError: There is one.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise ValueError(f"alias *{event.anchor}: write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")


def read_yaml(path: Path, *, loader: Any = yaml.CSafeLoader, aliases: bool = True) -> Any:
    """Read a YAML file as plain data.

    Args:
        path: A regular file or standard input; at most 1 MB, UTF-8, nested at most 64 deep.
        loader: A safe loader of PyYAML.
        aliases: Whether values may be named and repeated; not in files of others, where a few
            lines of them can stand for gigabytes.

    Returns:
        The value; None for an empty file.

    Raises:
        UserError: The file cannot be read or is not such a file.
    """
    try:
        if path.exists() and not path.is_file() and path != _INPUT:
            raise UserError(f"{path}: not a regular file; give a YAML file")
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if len(content) > _LARGEST:
        raise UserError(f"{path}: larger than {_LARGEST >> 20} MB; give a shorter YAML file")
    try:
        text = content.decode("utf-8")
        _check(text, aliases)
        return yaml.load(text, loader)
    except _MALFORMED as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not valid YAML ({problem}); correct the file") from None
