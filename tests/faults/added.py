"""Add up the figures of all parts of `make test-faults-long`, whose files are the arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Not sums: what every part measures as a whole, and what is the most of anything.
MOST = ("slowest ms", "rows", "items", "CPU s", "MB")
MOST_OF = (
    "determinism: files of each that were compared",
    "kills: most of one point",
    "writes: calls that write, all steps",
)


def added(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of parts together.

    Args:
        parts: What `FAULTS_RECORD` holds of each: numbers, or dictionaries of numbers, by name.

    Returns:
        Sums, and the largest of `MOST` and `MOST_OF`.
    """
    found: dict[str, Any] = {}
    for name in sorted({name for part in parts for name in part}):
        values = [part[name] for part in parts if name in part]
        if isinstance(values[0], dict):
            keys = dict.fromkeys(key for value in values for key in value)
            columns = {key: [value[key] for value in values if key in value] for key in keys}
            found[name] = {k: max(v) if k in MOST else sum(v) for k, v in columns.items()}
        else:
            found[name] = max(values) if name in MOST_OF else sum(values)
    return found


def main() -> None:
    """Print the sums of the files that the command line names."""
    parts = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    print(json.dumps(added(parts), indent=1, sort_keys=True, ensure_ascii=False))


if __name__ == "__main__":
    main()
