"""Reads the small files of a results folder; a damaged one becomes a line, and the rest is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.manifest import check_recorded, read_manifest, recorded_hash

# Shapes: a type or several, or an object's keys with their shapes. A key with an exclamation mark
# must be there, an asterisk stands for every key, and a list of one shape for one of any length.
Shape = Any
NUMBER = (int, float)
NUMBER_OR_NONE = (*NUMBER, type(None))
_JUDGED = {"learned!": bool, "base!": NUMBER, "expert!": NUMBER}
_CHECKED = {"not_finite": int, "perplexity": NUMBER_OR_NONE}
MANIFEST: Shape = {
    "parameters": {"set": {}, "search": {"joined": list}},
    "inputs": {"*": str},
    "outputs": {},
    "extra": {"accepted": {}},
}
GATE: Shape = {"experts": {"*": {"tasks!": {"*": _JUDGED}}}, "failed": {"*": str}}
SMOKE: Shape = {"model!": _CHECKED, "parents!": {"*": _CHECKED}}
_DESCRIBED: Shape = {
    "drift!": {"*": NUMBER_OR_NONE},
    "cosine!": {"*": NUMBER_OR_NONE},
    "conflict!": NUMBER_OR_NONE,
    "kept!": {"*": {"*": NUMBER_OR_NONE}},
    "outside!": {"*": NUMBER_OR_NONE},
    "length!": {"*": NUMBER_OR_NONE},
    "coefficients": {
        "*": {"sum!": NUMBER, "spread!": NUMBER, "shares!": {"*": NUMBER_OR_NONE}},
    },
}
_LOSSES: Shape = {"*": {"*": [NUMBER]}}
_LINES: Shape = {
    "rows!": {"*": int},
    "places!": [NUMBER],
    "base!": _LOSSES,
    "experts!": _LOSSES,
}
INSPECTION: Shape = {
    "experts!": list,
    "merges!": list,
    "all!": _DESCRIBED,
    "groups!": list,
    "lines": _LINES,
}
COST: Shape = {"counted": {"*": NUMBER}}
SCORES: Shape = {
    "tasks!": {"*": {"metric": str}},
    **{name: str for name in ("backend", "weights", "model", "split", "lm_eval")},
    "seed": (int, type(None)),
}


def misfit(content: Any, shape: Shape, place: str = "") -> str | None:
    """Say where a JSON value has another shape than it should; None where it fits."""
    if isinstance(shape, list):
        if not isinstance(content, list):
            return f"{place or 'it'} is {type(content).__name__}, not list"
        parts = (misfit(part, shape[0], f"{place}[{n}]") for n, part in enumerate(content))
        return next(filter(None, parts), None)
    if not isinstance(shape, Mapping):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        # JSON's true is no number, although Python's is one.
        wrong = isinstance(content, bool) and bool not in kinds
        if isinstance(content, kinds) and not wrong:
            return None
        return f"{place or 'it'} is {type(content).__name__}, not {kinds[0].__name__}"
    if not isinstance(content, Mapping):
        return f"{place or 'it'} is {type(content).__name__}, not an object"
    for key, inner in shape.items():
        name = key.removesuffix("!")
        if name not in content and key.endswith("!"):
            return f"it lacks {f'{place}.{name}'.lstrip('.')}"
        names = list(content) if key == "*" else [name] if name in content else []
        for found in names:
            if fault := misfit(content[found], inner, f"{place}.{found}".lstrip(".")):
                return fault
    return None


class Reader:
    """Reads a results folder's files and collects what is wrong with them.

    Args:
        results: The results folder.

    Attributes:
        faults: A line for each damaged file: which it is, what is wrong, and a remedy.
    """

    def __init__(self, results: Path) -> None:
        self._results = results
        self.faults: list[str] = []
        self._hashes: dict[tuple[Path, str, str], str | None] = {}

    def fault(self, line: str) -> None:
        """Collect a line, once."""
        if line not in self.faults:
            self.faults.append(line)

    def short(self, line: str) -> str:
        """Write paths in a line from the results folder on, as tables show them."""
        return line.replace(f"{self._results}/", "")

    def optional(self, path: Path, shape: Shape, what: str, recorded: bool = False) -> dict:
        """Read a file that may be missing.

        Args:
            path: The file.
            shape: What it should hold; see `misfit`.
            what: What it is, for the message: ``manifest``.
            recorded: Whether to compare it with the manifest next to it.

        Returns:
            Its content, empty where it is missing or damaged.
        """
        try:
            return read(path, shape, what, recorded) if path.exists() else {}
        except UserError as error:
            self.fault(str(error))
            return {}

    def recorded_items(self, data: Path, split: str, task: str) -> str | None:
        """Return the sha256 that a data folder's manifest says of a task's items of a split."""
        key = data, split, task
        if key not in self._hashes:
            suite, _, id = task.partition("/")
            try:
                found = recorded_hash(data / split / suite.split(":")[0] / f"{id}.jsonl")
            except UserError as error:
                self.fault(str(error))
                found = None
            self._hashes[key] = found
        return self._hashes[key]


def read(path: Path, shape: Shape, what: str, recorded: bool = False) -> dict[str, Any]:
    """Read a file that must be there; see `Reader.optional`.

    Raises:
        UserError: The file is not JSON, of another shape, or not as its manifest says.
    """
    if recorded:
        check_recorded(path)
    content = read_manifest(path) if path.name.endswith("manifest.json") else read_json(path)
    if fault := misfit(content, shape):
        raise UserError(f"{path}: not a {what} ({fault}); make the file again")
    return dict(content)
