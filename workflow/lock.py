"""One run at a time in a folder, by a lock that the kernel releases however a run ends."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from common.errors import UserError

LOCK = Path("results") / ".lock"


def take() -> AcquireReturnProxy:
    """Lock this folder's results until a `with` block or the process ends.

    Returns:
        The context manager of that block; the lock is held as long as something refers to it.

    Raises:
        UserError: Another run holds it, or it cannot be written.
    """
    try:
        LOCK.parent.mkdir(exist_ok=True)
        held = FileLock(LOCK).acquire(blocking=False)
    except Timeout:
        holder = LOCK.read_text(encoding="utf-8").strip() or "unknown"
        raise UserError(
            f"another run (process {holder}) is working in this folder; wait for it, stop it, or "
            "work in another clone"
        ) from None
    except OSError as error:
        raise UserError(
            f"{LOCK}: {error.strerror}; make this folder writable, or work in a copy of it"
        ) from None
    LOCK.write_text(str(os.getpid()), encoding="utf-8")
    return held
