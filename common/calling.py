"""Calling a command line's `main`."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from common import numerics
from common.errors import UserError, reason_of

_LONGEST = 4_000  # characters of a line; the longest of ours has 1,500
_running: list[str] = []  # the commands of this process, each called by the one before it


def say(line: str) -> None:
    """Write a line to standard error at once, so that no other process's line comes before its end.

    Args:
        line: Names and values in it may come from somebody's file: nothing of them controls a
            terminal, and what is too long is cut in the middle.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _empty_output() -> None:
    """Write what standard output still holds; where that fails, have it go nowhere.

    Python would fail on it once more at its end.
    """
    try:
        print(end="", flush=True)
    except OSError:  # a full device, or a pipe that nobody reads
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def command() -> str:
    """Return the command that runs now, as a shell takes it; empty outside a command line."""
    return _running[-1] if _running else ""


def call(module: str, arguments: Sequence[str]) -> int:
    """Run the `main(arguments) -> int` of a module and turn errors into one line and an exit code.

    Returns:
        The exit code: 0 for success, 2 for an error of the user's or of the system's, 130 after
        Ctrl-C, 141 where nobody reads the output, 1 for a fault of the program itself (with its
        traceback).
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows only ASCII shows the dagger in a table as an escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    package = module.removesuffix(".cli")
    _running.append(shlex.join(["python", "-m", package, *map(str, arguments)]))
    try:
        numerics.prepare()
        code = importlib.import_module(module).main(list(arguments)) or 0
        print(end="", flush=True)
        return code
    except UserError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else (0 if end.code is None else 2)
    except BrokenPipeError:
        _empty_output()
        return 141
    except OSError as error:
        # A place that is read-only, missing, of another kind or full, or a limit of the system.
        _empty_output()
        what = error.strerror or reason_of(error)
        say(
            f"error: {error.filename or 'standard output or a file'}: {what}; correct the path, "
            "or make the place writable and free some space, then run the same command again"
        )
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        _running.pop()
