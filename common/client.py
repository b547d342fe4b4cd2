"""The client of a warm worker: a command that a fork of the worker carries out (`common.warm`).

It starts for each step of a workflow, so it imports little: with all that a command line needs, its
start took twice as long.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import struct
import sys

TYPE_CHECKING = False  # of `typing`, whose import would be a tenth of the start
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

VARIABLE = "BOTTLE_WARM_WORKER"  # holds the name of the worker's socket
WORKFLOW = "BOTTLE_WORKFLOW"  # holds the number of the process that runs the experiment


def run(module: str) -> NoReturn:
    """End the process with the exit code of a module's `main(arguments) -> int`.

    Importing torch, transformers and lm-eval takes a process about eight seconds. Where a warm
    worker is offered, a fork of it does the work instead; result and output are the same.
    """
    if os.environ.get(VARIABLE):
        code = request(module, sys.argv[1:])
        if code is not None:
            sys.exit(code)
    from common.calling import call

    _end_with_the_workflow()
    sys.exit(call(module, sys.argv[1:]))


def _end_with_the_workflow() -> None:
    """Have this process end when the workflow that started it is gone, as a fork would.

    Its parent is a shell, which outlives a killed workflow for as long as its command runs.
    """
    import threading
    import time

    workflow = os.environ.get(WORKFLOW)
    if workflow is None:
        return

    def watch() -> None:
        while os.path.exists(f"/proc/{workflow}"):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def address(name: str) -> str:
    """Return the address of a worker's socket, of Linux's abstract kind: a kill leaves no file.

    Args:
        name: The worker's name, the value of `VARIABLE`.
    """
    return f"\0{name}"


def same_user(connection: socket.socket) -> bool:
    """Say whether the other side belongs to this user: such names have no file's permissions."""
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", found)[1] == os.getuid()


def request(module: str, arguments: Sequence[str]) -> int | None:
    """Have the warm worker run a module's `main(arguments) -> int`.

    Returns:
        The exit code, or None where no worker answers and the caller has to do it itself.
    """
    return ask(os.environ[VARIABLE], module, arguments, os.getcwd(), sys.path, os.environ)


def ask(
    worker: str,
    module: str,
    arguments: Sequence[str],
    folder: str,
    path: Sequence[str],
    environment: Mapping[str, str],
    streams: Sequence[int] = (0, 1, 2),
) -> int | None:
    """Have a warm worker run a module's `main(arguments) -> int` as another process would.

    Args:
        worker: The name of its socket.
        module: What has the `main`.
        arguments: Its arguments.
        folder: Where it works.
        path: Where it looks for modules.
        environment: Its variables.
        streams: File descriptors of its standard input, output and error.

    Returns:
        The exit code, or None where no worker answers and the caller has to do it itself.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address(worker))
        answers = same_user(connection)
    except OSError:
        answers = False
    if not answers:
        connection.close()
        return None
    message = {
        "module": module,
        "arguments": list(arguments),
        "folder": folder,
        "path": list(path),
        "environment": dict(environment),
    }
    answer = b""
    with connection:
        try:
            rights = array.array("i", streams)
            connection.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            connection.sendall(json.dumps(message).encode() + b"\n")
            while block := connection.recv(64):
                answer += block
        except OSError:  # the worker was killed
            pass
    return _explained(int(answer) if answer else None)


def _explained(code: int | None) -> int:
    """Say of a step that could not speak for itself that it was killed, and return its code.

    Args:
        code: Its exit code, 128 and the signal's number where one killed it; None where the
            worker was killed and the step with it.
    """
    # `call` itself returns the codes of the last two.
    signals = set(signal.Signals) - {signal.SIGINT, signal.SIGPIPE}
    if code is not None and code - 128 not in signals:
        return code
    from common.calling import say

    what = "the warm worker was killed, and with it this step"
    likely = "the system may have run out of memory"
    if code is not None:
        number = signal.Signals(code - 128)
        what = f"the step was killed by signal {number.value} ({number.name})"
        if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT):
            likely = "a library crashed"
        elif number != signal.SIGKILL:
            likely = "somebody or a scheduler ended it"
    say(f"error: {what}; {likely}: run the same command again")
    return 1 if code is None else code
