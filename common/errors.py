"""Errors that a user can fix, reported in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a full disk: one line that says what is wrong, where, and how to fix it."""


def reason_of(error: BaseException) -> str:
    """Return the first line of a library's error, at most 120 characters, or else its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Suggest the valid name nearest to a mistyped one.

    Args:
        name: What was given.
        valid: The names that would have been accepted.

    Returns:
        `` (did you mean 'x'?)``, or a list of the valid names where none is near.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (valid: {', '.join(names)})" if names else ""
