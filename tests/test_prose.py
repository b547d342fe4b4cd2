"""Plain English in documents, docstrings, comments and messages.

`python tests/test_prose.py [PATH ...]` lists every finding as FILE:LINE, excluded rooms included.
"""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms whose Python, rules and YAML still wait for their pass. Documents are never excluded.
EXCLUDED: set[str] = set()
TICS = {
    r"(?:stands?|stood|standing)\b(?!-ins?\b|\s+in\s+for\b|\s+for\b)": "is",
    r"(?:tells?|told|telling)\b(?!\s+apart)": "say, print, report",
    r"mend(?:s|ed|ing)?\b": "fix, remedy",
    r"beside\b": "next to, with, compared with",
    r"(?:a|the|as\s+one|its|their)\s+whole\b(?!-|\s+(?:models?|numbers?|parameters?)\b)": "all, -",
    r"whole\s+(?:and|or)\b": "complete, atomic",
    r"of\s+(?:its|their|one's|our|your|my)\s+own\b": "own, separate",
    r"(?:of|by|than|beyond|but)\s+what\b": "name the thing",
    r"foret(?:ells?|old)\b": "estimate",
    r"(?:lies?|lying)\b": "is",
    r"(?:go|goes|went|going|gone)\s+on\b": "resume, continue",
    r"(?:take|takes|took|taken|taking)\s+up\b": "resume",
}
PATTERN = re.compile("|".join(rf"(\b{tic})" for tic in TICS), re.IGNORECASE)
# The texts of tables must stay, so that tables compare byte for byte with those of earlier runs.
TABLE_TEXTS = (
    "the smaller a lead is beside the standard errors",
    "±.000 stands where all items are right",
    "ask, tell",
    "goes on X days",  # the world's own text
)


def blanked(text, *patterns):
    """Replace matches by blanks that keep line breaks, so that line numbers stay."""
    for pattern in patterns:
        text = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.M | re.S)
    return text


def findings(text, line=1):
    """Yield line, found words and a better word for every tic in a text."""
    text = blanked(text, *map(re.escape, TABLE_TEXTS), r"``.*?``", r"`[^`\n]+`", r"[“].*?[”]")
    for match in PATTERN.finditer(text):
        better = list(TICS.values())[match.lastindex - 1]
        yield line + text[: match.start()].count("\n"), " ".join(match[0].split()), better


def pieces(path):
    """Yield the first line and the text of everything in a file that people read."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield 1, blanked(text, r"^ *```.*?^ *```", r"^ *> .*?$", r"<!--.*?-->", r"\]\([^)]*\)")
    elif path.suffix in (".py", ".smk") or path.name == "Snakefile":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            # A string without a blank is a name, and an f-string's braces hold code.
            if token.type == tokenize.COMMENT or (
                token.type == tokenize.STRING and " " in token.string.strip("\"'")
            ):
                yield token.start[0], re.sub(r"\{[^{}\n]*\}", "X", token.string)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if found := re.search(r"(?:^|\s)#.*", line):
                yield number, found[0]


def tracked():
    """Return the names of all files that git tracks or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def read_by_people():
    """Return every tracked file with prose, tests aside."""
    kinds = (".md", ".py", ".smk", ".yaml", ".yml")
    for name in tracked():
        path = ROOT / name
        wanted = path.suffix in kinds or path.name in ("Makefile", "Snakefile")
        if wanted and not path.is_symlink() and not name.startswith("tests/"):
            yield name


def listed(names):
    """Return findings of files as lines that an editor can follow."""
    return [
        f"{name}:{number}: {words!r} -> {better}"
        for name in names
        for line, text in pieces(ROOT / name)
        for number, words, better in findings(text, line)
    ]


def test_documents_docstrings_comments_and_messages_are_plain_english():
    names = [
        name
        for name in read_by_people()
        if name.endswith(".md") or name.split("/")[0] not in EXCLUDED
    ]
    assert "README.md" in names and "docs/merging.md" in names
    found = listed(names)
    assert not found, "\n".join(["plain English, please:", *found])


@pytest.mark.parametrize(
    "text",
    [
        "The reason stands in the table.",
        "Nothing is told.",
        "The mend is a line.",
        "It runs beside the default.",
        "A command of its\nown",
        "It goes on where it was.",
        "the whole configuration",
        "a search that was taken up again",
    ],
)
def test_a_tic_is_found(text):
    assert list(findings(text))


@pytest.mark.parametrize(
    "text",
    [
        "Rows that stand in for others are stand-ins; R stands for results.",
        "`beside` is a key, and “it lies” a quotation.",
        "the whole-model methods and whole numbers",
        "It underlies recommended understanding.",
    ],
)
def test_plain_english_is_left_alone(text):
    assert not list(findings(text))


if __name__ == "__main__":
    chosen = tuple(sys.argv[1:]) or ("",)
    print("\n".join(listed(name for name in read_by_people() if name.startswith(chosen))))
