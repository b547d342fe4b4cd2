"""Files of items' records: compressed JSON lines, the same bytes for the same records."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_bytes


def write_records(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Write records, one a line, whole or not at all.

    Args:
        path: Ends in `.jsonl.gz` by habit.
        items: The records.
    """
    lines = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in items)
    # No time stamp: equal records must give equal bytes.
    write_bytes(path, gzip.compress(lines.encode(), compresslevel=6, mtime=0))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read what `write_records` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise EOFError("it is empty")
        text = gzip.decompress(content).decode()
        # Not splitlines: a text may hold line ends that only Unicode knows.
        return [json.loads(line) for line in text.split("\n") if line]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; evaluate the model first") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); evaluate the model again") from None
