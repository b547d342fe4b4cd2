"""Finished tasks on disk: no answer is asked for twice, and none is lent to other weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import sha256_json
from evaluation.items import read_records, write_records

_FORMAT = 1


class Store:
    """Results of finished tasks, one file each, in a folder that is made when the first is written.

    A file holds, compressed, a line with its key and the rest of the result, then a line for each
    item. Its name is a hash of the key, and the key is compared on reading, so that a file that
    was renamed, copied or damaged is never taken for another's result.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return the file of a key."""
        task = str(key["task"]).replace("/", ".").replace(":", "-")
        return self.folder / f"{task}-{sha256_json(dict(key))[:32]}.jsonl.gz"

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what was stored under a key, None if there is nothing or it cannot be trusted.

        The latter is reported on standard error.

        Args:
            key: All that the result depends on, as JSON values; `weights` (a checkpoint's
                fingerprint) and `task` must be in it. Without weights nothing is ever found.
        """
        if not key.get("weights"):
            return None
        path = self.path(key)
        if not path.exists():
            return None
        try:
            head, *items = read_records(path)
            right = {"format": _FORMAT, "key": _as_json(key), "count": len(items)}
            if {name: head[name] for name in right} != right:
                raise ValueError("it belongs to another key, or items are missing")
            return {**head["result"], "items": items}
        except (UserError, ValueError, KeyError, TypeError) as error:
            print(
                f"warning: {path} is not usable ({error}); the task is evaluated again",
                file=sys.stderr,
            )
            return None

    def put(self, key: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Store a task's result atomically.

        Args:
            key: See `get`. Without weights nothing is stored: a model that exists only in memory
                has no name that distinguishes it from others.
            result: JSON values; `items` is the list of the items' records.
        """
        if not key.get("weights"):
            return
        items = result["items"]
        rest = {name: value for name, value in result.items() if name != "items"}
        head = {"format": _FORMAT, "key": _as_json(key), "count": len(items), "result": rest}
        write_records(self.path(key), [head, *items])


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))
