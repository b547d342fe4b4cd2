"""One run at a time in a folder, by a lock that the kernel gives back however a run ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common.errors import UserError

LOCK = Path("results") / ".lock"


def take() -> TextIO:
    """Take the lock on this folder's results until the file is closed or the process ends.

    Returns:
        The open lock file.

    Raises:
        UserError: Another run holds it.
    """
    LOCK.parent.mkdir(exist_ok=True)
    lock = open(LOCK, "a+")  # noqa: SIM115 (it stays open as long as the lock is held)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise UserError(
            f"another run (process {holder}) is working in this folder; wait for it, stop it, or "
            "work in another clone"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


@contextlib.contextmanager
def only_run_here() -> Iterator[None]:
    """Hold the lock inside a `with` block; see `take`."""
    with take():
        yield
