"""Calling a command line's `main`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

from common import numerics
from common.errors import UserError


def call(module: str, arguments: Sequence[str]) -> int:
    """Run the `main(arguments) -> int` of a module and turn errors into one line and an exit code.

    Returns:
        The exit code: 0 for success, 2 for an error of the user's, 130 after Ctrl-C, 141 where
        nobody reads the output, 1 for a fault of the program itself (with its traceback).
    """
    try:
        numerics.prepare()
        return importlib.import_module(module).main(list(arguments)) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else (0 if end.code is None else 2)
    except BrokenPipeError:
        return 141
    except Exception:
        traceback.print_exc()
        return 1
