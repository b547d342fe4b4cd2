"""A step's key: the files that its entry points import, and what counts of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from common import sources
from common.errors import UserError

FILES = {
    "room/__init__.py": "",
    "room/entry.py": """
from typing import TYPE_CHECKING
from room import at_top
if TYPE_CHECKING:
    from room import only_for_types
def compute(x):
    "Says what it does."
    from room.inside import value
    return 2 * x + value  # why
""",
    "room/at_top.py": "from . import above\n",
    "room/above.py": "X = 1\n",
    "room/inside.py": "import json\nvalue = 3\n",
    "room/only_for_types.py": "Y = 1\n",
    "room/cli.py": "Z = 1\n",
    "room/suite.yaml": "tasks:\n  a: {shots: 3}  # three\nfrom: !function functions.f\n",
}
ENTRIES = ("room/entry.py", "room/suite.yaml")


@pytest.fixture
def key(tmp_path, monkeypatch):
    """A small project; a function that changes one of its files and gives the new key."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "_KEPT", tmp_path / "kept.json")
    (tmp_path / "room").mkdir()
    cached = (
        sources._known,
        sources._read,
        sources._folders,
        sources._files_of,
        sources.reachable,
    )

    def forget():
        for function in cached:
            function.cache_clear()

    def key(name=None, old="", new=""):
        forget()
        for path, text in FILES.items():
            assert path != name or old in text
            changed = text.replace(old, new) if path == name else text
            (tmp_path / path).write_text(changed, encoding="utf-8")
        return sources.version(ENTRIES)

    yield key
    forget()


def test_imports_are_followed_at_the_top_inside_functions_and_relative(key):
    key()
    found = {Path(path).stem for path in sources.reachable(ENTRIES)}
    assert found == {"__init__", "entry", "at_top", "above", "inside", "suite"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("room/entry.py", "  # why", ""),
        ("room/entry.py", "Says what it does.", "Says it in other words."),
        ("room/entry.py", "2 * x + value", "(2*x +\n        value)"),
        ("room/entry.py", '    "Says what it does."\n', ""),
        ("room/suite.yaml", "  # three", ""),
        ("room/suite.yaml", "{shots: 3}", "\n    shots: 3"),
        ("room/only_for_types.py", "1", "2"),
        ("room/cli.py", "1", "2"),
    ],
)
def test_what_cannot_change_a_number_is_in_no_key(key, name, old, new):
    assert key(name, old, new) == key()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("room/entry.py", "2 * x", "3 * x"),
        ("room/entry.py", "value  #", "-value  #"),
        ("room/above.py", "1", "2"),
        ("room/inside.py", "3", "4"),
        ("room/suite.yaml", "3}", "4}"),
        ("room/suite.yaml", "functions.f", "functions.g"),
        ("room/suite.yaml", "shots: 3", "shots: '3'"),
    ],
)
def test_what_can_change_a_number_changes_the_key(key, name, old, new):
    assert key(name, old, new) != key()


def test_an_import_that_is_a_choice_is_the_steps_to_name(key, monkeypatch):
    monkeypatch.setattr(sources, "CHOICES", ("room/entry.py",))
    assert key("room/inside.py", "3", "4") == key()
    assert key("room/above.py", "1", "2") != key()


def test_a_file_is_parsed_once_for_each_content(key, monkeypatch):
    first = key()
    monkeypatch.setattr(ast, "parse", lambda *_: pytest.fail("parsed again"))
    assert key() == first


def test_a_file_with_an_error_is_named(key):
    with pytest.raises(UserError, match=r"room/entry\.py: cannot be parsed .*; correct the file"):
        key("room/entry.py", "2 * x", "2 * *")


def test_every_declared_file_exists():
    tracked = [path.relative_to(sources.ROOT) for path in sources.ROOT.glob("*/**/*.py")]
    for pattern in (*sources.NO_NUMBER, *sources.CHOICES):
        assert any(path.match(pattern) for path in tracked), pattern


def test_keys_need_no_library_that_computes():
    code = (
        "import sys\n"
        "from evaluation.suites import load_suites, select\n"
        "from search.sources import search_files\n"
        "from common.sources import version\n"
        "version(search_files('tune', 'dam', select(list(load_suites())), 'postgres'))\n"
        "print({'torch', 'transformers', 'lm_eval', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sources.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
