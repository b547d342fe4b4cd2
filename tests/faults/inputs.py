"""Strategies of Hypothesis that damage valid documents, for readers of files that others made."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# What stands where another value should: of every kind of JSON, long, deep, and out of range.
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 10**30, -(2**63)),
    *(float("nan"), float("inf"), "", "a", "base", "..", "/", "a/b", "a\nb", "\x1b[2J", "\x00"),
    *("é", "\ud800", "9" * 400, "x" * 5000),
    *([], {}, [[]], [None], {"": 0}, [0] * 200, {"a": {"a": {"a": 1}}}, ["a", 1], [1, -1]),
]  # fmt: skip
PIECES = [
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r", b"\t", b"\x00", b"\xff\xfe", b"\x80"),
    *(b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 1500),
    *(b"- ", b"&a ", b"*a", b"!!int ", b"<<: ", b"? ", b"|", b"'", b"#", b"%", b"...", b"---"),
    b"\\ud800",
    *(b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"2024-13-45", b"\\", b"/*", b"*/", b"--", b";", b"```"),
]  # fmt: skip
_PLACES = st.integers(0, 1 << 16)


def _nodes(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths of all values in a document, its own, the empty one, among them."""
    found = [path]
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, below in inner:
        found += _nodes(below, (*path, key))
    return found


def _edited(document: Any, edits: list[tuple[int, int, Any]]) -> Any:
    """Replace, remove or rename the values at some places of a document."""
    document = copy.deepcopy(document)
    for place, how, new in edits:
        paths = _nodes(document)
        path = paths[place % len(paths)]
        if not path:
            if how == 0:
                document = copy.deepcopy(new)
            continue
        above = document
        for key in path[:-1]:
            above = above[key]
        if how == 1:
            del above[path[-1]]
        elif how == 2 and isinstance(above, dict):
            above[str(new)[:50]] = above.pop(path[-1])
        else:
            above[path[-1]] = copy.deepcopy(new)
    return document


def documents(document: Any) -> st.SearchStrategy[Any]:
    """Draw documents that differ from a valid one in one to three places."""
    edit = st.tuples(_PLACES, st.integers(0, 5), st.sampled_from(VALUES))
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: _edited(document, edits))


def contents(content: bytes) -> st.SearchStrategy[bytes]:
    """Draw bytes in which one to four stretches of valid ones are replaced."""
    piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=8))
    edit = st.tuples(_PLACES, st.sampled_from((0, 0, 1, 2, 8, 64)), piece)

    def apply(edits):
        found = content
        for place, size, new in edits:
            at = place % (len(found) + 1)
            found = found[:at] + new + found[at + size :]
        return found

    return st.lists(edit, min_size=1, max_size=4).map(apply)


def json_files(document: Any) -> st.SearchStrategy[bytes]:
    """Draw files of JSON: of another document, or damaged as bytes."""
    text = json.dumps(document).encode()
    return st.one_of(
        documents(document).map(lambda value: json.dumps(value).encode()), contents(text)
    )


def texts(words: list[str], most: int = 40) -> st.SearchStrategy[str]:
    """Draw texts that are made of words, with some of any letters."""
    word = st.one_of(st.sampled_from(words), st.sampled_from(words), st.text(max_size=4))
    return st.lists(word, max_size=most).map("".join)
