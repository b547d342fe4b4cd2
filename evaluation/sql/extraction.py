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
    """Find semicolons, braces and fences outside strings, quoted names and comments.

    Args:
        text: SQL, perhaps with other text behind it.

    Yields:
        The mark and its position.
    """
    for match in _MARKS.finditer(text):
        if match.group() in (";", "{", "}", FENCE):
            yield match.group(), match.start()


def split_statements(text: str) -> list[str]:
    """Split at semicolons that end a statement.

    Args:
        text: Statements; a semicolon inside a string, a quoted name or a comment ends nothing.

    Returns:
        The statements without their semicolons, stripped, empty ones left out.
    """
    ends = [position for mark, position in marks(text) if mark == ";"]
    starts = [0, *(position + 1 for position in ends)]
    pieces = (
        text[start:end].strip() for start, end in zip(starts, [*ends, len(text)], strict=True)
    )
    return [piece for piece in pieces if piece]


def after_cue(text: str) -> str:
    """Find the statement in an answer of the bottle's task.

    Args:
        text: The answer; what stands after the last ``SQL:``, if there is one, is the query.

    Returns:
        The first statement, without its semicolon.
    """
    text = text.rpartition("SQL:")[2]
    for mark, position in marks(text):
        if mark == ";":
            return text[:position].strip()
    return text.strip()


def published(text: str) -> str:
    """Cut an answer as the published SQL-Eval does: at any semicolon, then at any fence.

    Args:
        text: What the model wrote behind the prompt's open fence.

    Returns:
        The statement. A semicolon inside a string ends it too, which is a fault.
    """
    return text.partition(";")[0].partition(FENCE)[0].strip()


def corrected(text: str) -> str:
    """Cut an answer at the first semicolon or fence outside strings and comments.

    Args:
        text: What the model wrote behind the prompt's open fence; a fence that it opens again at
            the start is passed over.

    Returns:
        The statement.
    """
    text = re.sub(rf"\A\s*{FENCE}(?:sql)?\s", "", text)
    for mark, position in marks(text):
        if mark in (";", FENCE):
            return text[:position].strip()
    return text.strip()
