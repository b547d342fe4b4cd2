"""A warm worker: one process imports the heavy libraries once and forks for every request.

The default experiment is made of more than a hundred short steps. Started cold, each would spend
about eight CPU seconds on imports, more than all training and merging together. A request carries
the caller's arguments, folder, environment and standard streams; the fork does exactly what the
caller would have done. The worker dies with the process that started it, and a fork dies with its
caller or with the worker, so nothing continues after a kill.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from common.calling import call
from common.client import VARIABLE, address, same_user

PRELOAD = (
    "torch",
    "safetensors.torch",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "datasets",
    "pandas",
    "cmaes",
    "pydantic.main",  # else each evaluation imports it anew, in .05 s
)
# Steps allocate and free tensors of megabytes all the time. By default glibc returns each to the
# system, which clears its pages anew for the next; kept on the heap, in large pages, they are not.
# Read when a process starts; a user's settings win.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * 4))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    line = b""
    while not line.endswith(b"\n"):
        block = connection.recv(1 << 16)
        if not block:
            raise ConnectionError("the caller went away")
        line += block
    return json.loads(line), list(descriptors)


def _serve_one(connection: socket.socket) -> None:
    """In a child: fork the step, and kill it if its caller goes away first."""
    if not same_user(connection):
        return
    message, descriptors = _receive(connection)
    parent = os.getpid()
    step = os.fork()
    if step == 0:
        die_with_parent(parent)
        os.setsid()
        connection.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        for descriptor in descriptors:
            if descriptor > 2:
                os.close(descriptor)
        os.chdir(message["folder"])
        os.environ.clear()
        os.environ.update(message["environment"])
        sys.path[:] = message["path"]
        # Python's standard streams still hold what the worker's start printed.
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = call(message["module"], message["arguments"])
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    for descriptor in descriptors:
        os.close(descriptor)
    process = os.pidfd_open(step)
    poller = select.poll()
    poller.register(process, select.POLLIN)
    poller.register(connection, select.POLLIN | select.POLLHUP | select.POLLRDHUP)
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if process in ready:
            break
        os.kill(step, signal.SIGKILL)
    _, status = os.waitpid(step, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):  # the caller was killed meanwhile
        connection.sendall(str(code if code >= 0 else 128 - code).encode())


def serve(listener: socket.socket, preload: Sequence[str]) -> None:
    """Import the heavy libraries, then fork a child for every request until killed.

    Args:
        listener: A listening Unix socket; callers queue there while the imports last.
        preload: The modules to import.
    """
    for module in preload:
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"warm worker: {module} cannot be imported ({error})", file=sys.stderr)
    if "torch" in preload:
        import torch

        torch.set_num_threads(1)  # a pool of threads would not survive the fork
    # A collection in a fork would go through, and so copy, all that the libraries have made.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    worker = os.getpid()
    while True:
        connection, _ = listener.accept()
        child = os.fork()
        if child == 0:
            die_with_parent(worker)
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _serve_one(connection)
            finally:
                os._exit(0)
        connection.close()


class Worker:
    """Offers a warm worker to every `python -m PACKAGE` started inside a `with` block.

    The worker imports the modules of `preload` at the first request, so that a run that has nothing
    to do does not pay for it.
    """

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        self._preload = preload

    def __enter__(self) -> Worker:
        name = f"merging-in-a-bottle-{os.getpid()}-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address(name))
        self._listener.listen(64)
        self._end, self._ended = os.pipe()
        self._process: subprocess.Popen | None = None
        # A child asks to be killed with the thread that started it: this one stays until the end.
        self._starter = threading.Thread(target=self._start_at_first_request, daemon=True)
        self._starter.start()
        os.environ[VARIABLE] = name
        return self

    def _start_at_first_request(self) -> None:
        ready, _, _ = select.select([self._listener, self._end], [], [])
        if self._end in ready:
            return
        parent = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.warm", str(self._listener.fileno()), *self._preload],
            # The worker must not look for a worker. Hashing and OpenMP read their settings only
            # when a process starts, so it starts with those that the workflow's jobs have.
            env=MEMORY
            | {k: v for k, v in os.environ.items() if k != VARIABLE}
            | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parent.parent,
            pass_fds=[self._listener.fileno()],
            preexec_fn=lambda: die_with_parent(parent),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        self._process.wait()
        # Nobody answers any more: callers are refused and start cold.
        self._listener.close()

    def __exit__(self, *_: object) -> None:
        os.environ.pop(VARIABLE, None)
        os.close(self._ended)
        if self._process is not None:
            self._process.kill()
        self._starter.join()
        os.close(self._end)
        self._listener.close()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
