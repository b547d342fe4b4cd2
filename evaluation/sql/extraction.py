"""Finding statements in text: what a model wrote, and lists of alternatives."""

from __future__ import annotations

import re
from collections.abc import Iterator

FENCE = "```"

# A string, a quoted name or a comment, inside which a mark means nothing; then the marks.
_STRINGS = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
_COMMENTS = r"--[^\n]*|/\*.*?\*/"
_WRITING = re.compile(
    r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;|```",
    re.DOTALL,
)
# How statements begin; white space, brackets and comments may come first. What a model wrote must
# not decide how long a search takes: what was passed once (`*+`) is not tried in another way.
_STATEMENT = re.compile(
    r"(?>\s|\(|--[^\n]*\n|/\*.*?\*/)*+(?:select|with|values|table|explain|insert|update|delete)\b",
    re.DOTALL | re.IGNORECASE,
)
_OPENED = re.compile(
    r"```(?:[ \t]*+(?!select\b|with\b|values\b|table\b)[\w.+-]*+[ \t]*+\r?\n"
    r"|(?=\w*sql)\w*+\s|[ \t]*(?=[^\s\w`]|\w+\s))",
    re.IGNORECASE,
)
_INTRODUCTION = 400  # characters of prose that may precede a fence
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


def _start(text: str) -> int | None:
    """Find where the statement of an answer begins; None where that is not certain yet.

    The prompt ends with an open fence, which an answer may open again, with any name of a language
    and behind an introduction.
    """
    introduced = text.find(FENCE) if not _STATEMENT.match(text) else -1
    if introduced < 0:
        return 0 if _STATEMENT.match(text) or len(text) > _INTRODUCTION else None
    opened = _OPENED.match(text, introduced)
    return opened.end() if opened else None


def corrected(text: str) -> str:
    """Cut an answer at the first semicolon or fence outside strings and comments.

    A fence that the answer opens again is passed over.
    """
    start = _start(text) or 0
    text = text[start:]
    for mark, position in marks(text):
        if mark in (";", FENCE):
            return text[:position].strip()
    return text.strip()


def is_complete(text: str) -> bool:
    """Say whether an answer that is still being written holds a statement's end.

    A semicolon or a fence in a string, a name or a comment that is open ends nothing.
    """
    start = _start(text)
    if start is None:
        return False
    return any(match.group() in (";", FENCE) for match in _WRITING.finditer(text, start))
