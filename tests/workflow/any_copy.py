"""Preloaded by the tests' warm worker: a step runs the code of its caller's copy of the project."""

import importlib
import sys


def call(module, arguments):
    """Forget the worker's own modules of the project, then run the step; see `common.calling`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "common"]:
        del sys.modules[name]
    return importlib.import_module("common.calling").call(module, arguments)


sys.modules["__main__"].call = call
