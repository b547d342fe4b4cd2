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
import traceback
from collections.abc import Iterable, Sequence
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
    "transformers.models.auto.tokenization_auto",
    "pydantic.types",  # else each evaluation imports it anew, in .05 s
    "blake3",
    "llvmlite.binding",
    "llvmlite.ir",
)
# This project's modules that most steps need: their import takes an evaluation a tenth of a second,
# and two where Python may not keep what it compiles.
STEPS = (
    "evaluation.backends.plain",
    "evaluation.cli",
    "evaluation.harness",
    "evaluation.items",
    "merges.arithmetic.kernels",
    "merges.dam.method",
    "merges.dam.states",
    "merges.running",
    "search.searches",
    "search.strategies",
    "search.workbench",
)
ROOT = Path(__file__).resolve().parent.parent
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


def _step(connection: socket.socket, kept: _Kept) -> int:
    """In a fork: do what the caller asks for, as the caller would; returns the exit code."""
    if not same_user(connection):
        return 1
    message, descriptors = _receive(connection)
    connection.close()  # else a process that it leaves behind would hold it
    os.setsid()
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
    kept.forget_if_changed()
    code = call(message["module"], message["arguments"])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


class _Steps:
    """The steps that run: each is killed once its caller goes away, or its exit code goes there.

    Args:
        listener: Where callers come.
        kept: What steps find imported.
    """

    def __init__(self, listener: socket.socket, kept: _Kept) -> None:
        self._listener, self._kept, self._worker = listener, kept, os.getpid()
        self._poller = select.poll()
        self._poller.register(listener, select.POLLIN)
        # By descriptor, of its process and of its connection: the step's process and connection.
        self._running: dict[int, tuple[int, int, socket.socket]] = {}

    def wait(self) -> None:
        """Wait for a caller, or for the end of a step or of its caller."""
        ready = [descriptor for descriptor, _ in self._poller.poll()]
        for descriptor in ready:
            if descriptor in self._running:  # not one of a step that has just ended
                self._end(descriptor)
        # Last: it may be given a descriptor that was closed just now.
        if self._listener.fileno() in ready:
            self._begin(self._listener.accept()[0])

    def _begin(self, connection: socket.socket) -> None:
        step = os.fork()
        if step == 0:
            code = 1
            try:
                die_with_parent(self._worker)
                self._listener.close()
                for _, _, other in self._running.values():
                    other.close()  # else its caller would wait for this step too
                code = _step(connection, self._kept)
            except ConnectionError:
                pass  # the caller has gone
            except Exception:  # such as a folder that is gone
                traceback.print_exc()
            finally:
                os._exit(code)
        process = os.pidfd_open(step)
        self._running[process] = self._running[connection.fileno()] = step, process, connection
        self._poller.register(process, select.POLLIN)
        self._poller.register(connection, select.POLLHUP | select.POLLRDHUP)

    def _end(self, descriptor: int) -> None:
        step, process, connection = self._running[descriptor]
        if descriptor != process:
            os.kill(step, signal.SIGKILL)
        _, status = os.waitpid(step, 0)
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):  # the caller was killed
            connection.sendall(str(code if code >= 0 else 128 - code).encode())
        for one in (process, connection.fileno()):
            self._poller.unregister(one)
            del self._running[one]
        os.close(process)
        connection.close()


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"warm worker: {module} cannot be imported ({error})", file=sys.stderr)


class _Kept:
    """Modules of this project that steps find imported, for as long as their files are the same.

    Args:
        modules: The modules to import; what they import is kept with them.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        before = set(sys.modules)
        _import(modules)
        self._files: dict[str, str] = {}
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            # Not a library's in an environment inside the project's folder.
            if file and (ROOT / name.partition(".")[0]).is_dir():
                self._files[name] = file
        self._states = self._found()

    def _found(self) -> list[tuple[int, int, int] | None]:
        return [_state(file) for file in self._files.values()]

    def forget_if_changed(self) -> None:
        """Have a step import all anew once one of the files is another.

        It would otherwise run half of an edit, for what it imports itself is read then.
        """
        if self._found() != self._states:
            for name in self._files:
                sys.modules.pop(name, None)


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def serve(listener: socket.socket, preload: Sequence[str], steps: Sequence[str] = ()) -> None:
    """Import the heavy libraries, then fork a child for every request until killed.

    Args:
        listener: A listening Unix socket; callers queue there while the imports last.
        preload: The libraries' modules to import.
        steps: Those of this project, which are imported again once their files change.
    """
    _import(preload)
    kept = _Kept(steps)
    if "torch" in preload:
        import torch

        torch.set_num_threads(1)  # a pool of threads would not survive the fork
    # A collection in a fork would go through, and so copy, all that the libraries have made.
    gc.collect()
    gc.freeze()
    steps_running = _Steps(listener, kept)
    while True:
        steps_running.wait()


class Worker:
    """Offers a warm worker to every `python -m PACKAGE` started inside a `with` block.

    The worker imports the modules of `preload` and `steps` at the first request, so that a run that
    has nothing to do does not pay for it.

    Args:
        preload: Modules of libraries.
        steps: Modules of this project.
    """

    def __init__(self, preload: Sequence[str] = PRELOAD, steps: Sequence[str] = ()) -> None:
        self._preload, self._steps = preload, steps

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
            [sys.executable, "-m", "common.warm", str(self._listener.fileno())]
            + [json.dumps(modules) for modules in (self._preload, self._steps)],
            # The worker must not look for a worker. Hashing and OpenMP read their settings only
            # when a process starts, so it starts with those that the workflow's jobs have.
            env=MEMORY
            | {k: v for k, v in os.environ.items() if k != VARIABLE}
            | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
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
    serve(socket.socket(fileno=int(sys.argv[1])), *map(json.loads, sys.argv[2:]))
