"""Preloaded by the laboratory's warm worker: notes each step, and makes its n-th write fail.

Faults are put where Python hands bytes or names to the system: `open` for writing and every write
of such a file, `os.pwrite`, `os.fsync`, `os.replace`, `os.mkdir`, and the safetensors library's own
writer, which fails in its words. Only calls for files below the folder of the step count. What a
library writes past Python (tokenizers' own file) is not reached.
"""

from __future__ import annotations

import builtins
import errno
import functools
import importlib
import io
import json
import os
import sys
from pathlib import Path

from tests.workflow import any_copy

FAULT = "FAULTS_AT"  # number of the call that fails, the error's name, `once` or `on`
COUNT = "FAULTS_COUNT"  # a file for the number of calls
LOG = "FAULTS_LOG"


class Injector:
    """Counts calls that write, and fails at one of them, or from it on."""

    def __init__(self, at: int, code: int, lasting: bool) -> None:
        self.at, self.code, self.lasting = at, code, lasting
        self.count, self.top = 0, os.getcwd()

    def reached(self, path) -> bool:
        """Count a call for a file below the folder; say whether it is to fail."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.path.abspath(os.fspath(path))
        if not path.startswith(f"{self.top}/results/"):
            return False
        self.count += 1
        return self.count == self.at or (self.lasting and self.count > self.at > 0)

    def fault(self, *path) -> OSError:
        return OSError(self.code, os.strerror(self.code), *path)

    def wrap(self, function, named: bool):
        """Have a function of `os` fail; with the path in the error where the system gives it."""

        @functools.wraps(function)
        def call(place, *arguments, **options):
            if self.reached(place):
                raise self.fault(*[place] * named)
            return function(place, *arguments, **options)

        return call

    def opener(self, original):
        """Have `open` and the writes of a file that it opens fail."""
        injector = self

        class File(io.FileIO):
            def write(self, data):
                if injector.reached(self.fileno()):
                    raise injector.fault()
                return super().write(data)

        @functools.wraps(original)
        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **rest):
            if not set(mode) & set("wxa+") or isinstance(file, int) or rest:
                return original(file, mode, buffering, encoding, errors, newline, **rest)
            if not os.path.abspath(os.fspath(file)).startswith(f"{injector.top}/results/"):
                return original(file, mode, buffering, encoding, errors, newline)
            if injector.reached(file):
                raise injector.fault(file)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline)

        return opened

    def serializer(self, original):
        """Have the safetensors library's writer fail as it says it."""
        from safetensors import SafetensorError

        @functools.wraps(original)
        def serialize(tensors, path, *arguments, **options):
            if self.reached(path):
                why = f"{os.strerror(self.code)} (os error {self.code})"
                raise SafetensorError(f"Error while serializing: I/O error: {why}")
            return original(tensors, path, *arguments, **options)

        return serialize

    def install(self) -> None:
        """Put the faults in place, in this process."""
        for name, named in (("fsync", False), ("pwrite", False), ("replace", True)):
            setattr(os, name, self.wrap(getattr(os, name), named))
        os.mkdir = self.wrap(os.mkdir, True)
        builtins.open = io.open = self.opener(builtins.open)
        for name in ("safetensors.torch", "safetensors.numpy"):
            module = importlib.import_module(name)
            module.serialize_file = self.serializer(module.serialize_file)


def call(module, arguments):
    """Note the step, put the fault in place, and run it as any copy of the project would."""
    if place := os.environ.get(LOG):
        line = json.dumps([module, list(arguments), dict(os.environ)])
        with open(place, "a", encoding="utf-8") as log:
            log.write(f"{line}\n")
    injector = None
    if asked := os.environ.get(FAULT):
        at, name, how = asked.split(":")
        injector = Injector(int(at), getattr(errno, name), how == "on")
        injector.install()
    code = any_copy.call(module, arguments)
    if injector and COUNT in os.environ:
        Path(os.environ[COUNT]).write_text(str(injector.count))
    return code


sys.modules["__main__"].call = call
