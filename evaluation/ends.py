"""What may end an answer besides strings; the suites that need such an end add it here.

A backend reads this table and imports no suite, so a change of one suite's ends is in no other
suite's key.
"""

from __future__ import annotations

from collections.abc import Callable

# By name: strings that come first, and a function that looks at the text once one of them comes.
ENDS: dict[str, tuple[tuple[str, ...], Callable[[str], bool]]] = {}
