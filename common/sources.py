"""What a step's result depends on in this project's own files: its key.

A step names its entry points, the modules that compute its result. Their imports are followed, at
the top of a file and inside functions, and every file that is found counts by its meaning: a
Python file by its syntax tree without docstrings, a YAML file by its content. Comments, docstrings
and formatting are in no key. What is imported by a name that is computed, the step names itself.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
# Modules that cannot change a number, each with the reason: in no key, and not followed.
NO_NUMBER = {
    "*/__main__.py": "starts a command line",
    "*/cli.py": "reads a command line; the workflow gives each value that it sets",
    "merges/dam/teachers.py": "is the command line of the teachers",
    "merges/running.py": "carries out the merges' command line; the workflow gives each value",
    "common/calling.py": "calls a command line and reports its errors",
    "common/cost.py": "measures what a step takes",
    "common/errors.py": "words messages",
    "common/hashes.py": "hashes files",
    "common/numerics.py": "says what the libraries may use; keys hold these settings",
    "common/machine.py": "names the processor",
    "common/manifest.py": "records what a result was made from",
    "common/progress.py": "shows how far a step is",
    "common/sources.py": "makes the keys",
    "common/warm.py": "starts processes",
    "checkpoints/card.py": "writes a model's README",
    "checkpoints/devices.py": "checks that a device is there",
    "evaluation/bar.py": "shows how far an evaluation is",
    "evaluation/sources.py": "names entry points",
    "evaluation/store.py": "keeps finished tasks by their keys",
    "evaluation/summary.py": "prints scores",
    "search/sources.py": "names entry points",
}
# Files in which an import inside a function is one of several choices: the step names its own.
CHOICES = (
    "evaluation/backends/__init__.py",
    "evaluation/items.py",
    "evaluation/sql/sql_eval.py",
    "search/goals/searching.py",
    "search/searches.py",
)
# Trees are parsed once for each content of a file, not once for each process.
_KEPT = ROOT / "__pycache__" / f"sources.{sys.implementation.cache_tag}.json"
_parsed: set[str] = set()


def _modules(node: ast.AST, package: list[str]) -> list[str]:
    """List the modules that an import statement may mean."""
    if isinstance(node, ast.Import):
        return [item.name for item in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    return [module, *(f"{module}.{item.name}" for item in node.names)]


def _imports(node: ast.AST, package: list[str], inside: bool) -> Iterator[tuple[bool, str]]:
    """Yield what runs an import: whether inside a function, and the module."""
    inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        yield from ((inside, module) for module in _modules(child, package))
        yield from _imports(child, package, inside)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [child for child in body if not _is_text(child)]
    return tree


def _content(node: yaml.Node | None) -> Any:
    """Turn a YAML document into texts that say all but how it is written."""
    if isinstance(node, yaml.MappingNode):
        return node.tag, [(_content(key), _content(value)) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return node.tag, [_content(item) for item in node.value]
    return node and (node.tag, node.value)


def _facts(path: str, data: bytes) -> dict[str, Any]:
    """Parse a file: the hash of its meaning, and its imports at the top and inside functions."""
    found: set[tuple[bool, str]] = set()
    try:
        if path.endswith(".py"):
            tree = ast.parse(data)
            found = set(_imports(tree, list(Path(path).parent.parts), inside=False))
            text = ast.dump(_without_docstrings(tree))
        elif path.endswith(".yaml"):
            text = repr(_content(yaml.compose(data, Loader=yaml.CSafeLoader)))
        else:
            text = repr(data)
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        problem = str(error).replace("\n", " ")
        raise UserError(f"{path}: cannot be parsed ({problem}); correct the file") from None
    return {
        "says": hashlib.sha256(text.encode()).hexdigest(),
        "top": sorted(module for inside, module in found if not inside),
        "inside": sorted(module for inside, module in found if inside),
    }


@functools.cache
def _known() -> dict[str, Any]:
    try:
        return read_json(_KEPT)
    except (OSError, UserError):
        return {}


@functools.cache
def _read(path: str) -> dict[str, Any]:
    data = (ROOT / path).read_bytes()
    sha256 = hashlib.sha256(Path(__file__).read_bytes() + data).hexdigest()
    if _known().get(path, {}).get("sha256") != sha256:
        _known()[path] = {"sha256": sha256, **_facts(path, data)}
        _parsed.add(path)
    return _known()[path]


def _keep() -> None:
    """Write what was parsed; where the folder cannot be written, the next process parses again."""
    if _parsed:
        _parsed.clear()
        with contextlib.suppress(OSError, UserError):
            write_json(_KEPT, _known())


@functools.cache
def _folders() -> frozenset[str]:
    return frozenset(entry.name for entry in os.scandir(ROOT) if entry.is_dir())


@functools.cache
def _files_of(module: str) -> tuple[str, ...]:
    """Find the files that importing a module runs: its own and those of the packages above."""
    parts = module.split(".")
    if parts[0] not in _folders():
        return ()
    packages = ["/".join([*parts[:count], "__init__.py"]) for count in range(1, len(parts) + 1)]
    names = ["/".join(parts) + ".py", *packages]
    return tuple(name for name in names if os.path.isfile(f"{ROOT}/{name}"))


def no_number(path: str) -> bool:
    """Say whether a file is declared to change no number; see NO_NUMBER."""
    return any(fnmatch(path, pattern) for pattern in NO_NUMBER)


@functools.cache
def reachable(entries: Collection[str]) -> tuple[str, ...]:
    """Find the files on which a step's result depends, sorted.

    Args:
        entries: The step's entry points, as a tuple of paths below the project's root (or absolute
            ones elsewhere): modules, and the YAML files that they read.

    Returns:
        These files and all that they import, without those of NO_NUMBER.

    Raises:
        UserError: A file is not valid Python or YAML.
    """
    pending, done = list(entries), set()
    while pending:
        path = pending.pop()
        if path in done or no_number(path):
            continue
        done.add(path)
        facts = _read(path)
        modules = facts["top"] + ([] if path in CHOICES else facts["inside"])
        parents = [Path(path).with_suffix("").as_posix().replace("/", ".")]
        for module in [*modules, *(parents if path.endswith(".py") else ())]:
            pending += _files_of(module)
    _keep()
    return tuple(sorted(done))


def version(entries: Iterable[str]) -> str:
    """Return a step's key: 16 hexadecimal digits over the paths and meanings of `reachable`."""
    found = [(path, _read(path)["says"]) for path in reachable(tuple(entries))]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]
