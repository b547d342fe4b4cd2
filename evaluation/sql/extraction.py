"""Finding statements in text: what a model wrote, and lists of alternatives."""

from __future__ import annotations

import re
from collections.abc import Iterator

FENCE = "```"

# A string, a quoted name or a comment, inside which a mark means nothing; then the marks.
_STRINGS = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
_COMMENTS = r"--[^\n]*|/\*.*?\*/"
_MARKS = re.compile(rf"{_STRINGS}|{_COMMENTS}|[;{{}}]|```", re.DOTALL)


def marks(text: str) -> Iterator[tuple[str, int]]:
    """Yield semicolons, braces and fences outside strings, quoted names and comments, and where."""
    for match in _MARKS.finditer(text):
        if match.group() in (";", "{", "}", FENCE):
            yield match.group(), match.start()


def split_statements(text: str) -> list[str]:
    """Split at semicolons that end a statement; strip the parts and leave out empty ones."""
    ends = [position for mark, position in marks(text) if mark == ";"]
    starts = [0, *(position + 1 for position in ends)]
    pieces = (
        text[start:end].strip() for start, end in zip(starts, [*ends, len(text)], strict=True)
    )
    return [piece for piece in pieces if piece]


def after_cue(text: str) -> str:
    """Find the first statement in an answer of the bottle's task, after the last ``SQL:``."""
    text = text.rpartition("SQL:")[2]
    for mark, position in marks(text):
        if mark == ";":
            return text[:position].strip()
    return text.strip()


def published(text: str) -> str:
    """Cut an answer as the published SQL-Eval does: at any semicolon, then at any fence.

    A semicolon inside a string ends it too, which is a fault.
    """
    return text.partition(";")[0].partition(FENCE)[0].strip()


def corrected(text: str) -> str:
    """Cut an answer at the first semicolon or fence outside strings and comments.

    The prompt ends with an open fence; one that the answer opens again at its start is ignored.
    """
    text = re.sub(rf"\A\s*{FENCE}(?:sql)?\s", "", text)
    for mark, position in marks(text):
        if mark in (";", FENCE):
            return text[:position].strip()
    return text.strip()
