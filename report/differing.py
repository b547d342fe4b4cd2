"""What else differs between two runs: verdicts on claims, settings, and the first other step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.hashes import BLAKE3, hash_cached, kind_of
from common.manifest import NAME, read_manifest
from report import kept
from report.experiment import Experiment
from report.load import load
from report.published import PAPER
from report.published import load as load_published
from report.verdicts import judgements

_CONFIG = "config.json"
# Folders of a world in the order of the work; a scored model's manifest is next to its scores.
_ORDER = ("data", "models/base", "models/*", "teachers", "statistics/*/*", "merges/*")
_SCORED = "scores/test/*.manifest.json"
_CAUSES = ("inputs", "parameters", "seed", "versions", "numerics", "code")  # of a manifest
_MOST = 8  # names in a line
_NAMING = ("README.md", "scores")  # outputs that name models by their hashes


@contextlib.contextmanager
def _experiment(results: Path) -> Iterator[Experiment | None]:
    """Open a results folder or a file of kept scores; None where its configuration is missing."""
    if results.is_file():
        with kept.opened(results) as found:
            yield found
    else:
        config = results / _CONFIG
        yield load(config, results) if config.is_file() else None


def _flat(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not above):
        for name, part in value.items():
            yield from _flat(part, f"{above}.{name}" if above else str(name))
    else:
        yield above, value


def other_keys(one: Any, two: Any) -> list[str]:
    """Name the keys of two JSON values that differ, with dots between the names."""
    first, second = dict(_flat(one)), dict(_flat(two))
    missing = object()
    names = dict.fromkeys([*first, *second])
    return [name for name in names if first.get(name, missing) != second.get(name, missing)]


def other_settings(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Name the settings that separate two runs' scores.

    Args:
        one: The configuration of one.
        two: That of the other. A row, an ablation or a study that only one of them has is none.
    """
    first, second = ({"methods": {}, **config, "name": None} for config in (one, two))
    for config, other in ((first, two), (second, one)):
        shared = other.get("methods", {})
        config["methods"] = {k: row for k, row in config["methods"].items() if k in shared}
        for name in ("ablation", "studies"):
            if not (one.get(name) and two.get(name)):
                config.pop(name, None)
    return other_keys(first, second)


def listed(names: list[str]) -> str:
    """Join the first names, and count the others."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _claims(one: Experiment, two: Experiment) -> list[str]:
    """Say which claims have another verdict; a claim that one of them cannot judge is left out."""
    published = load_published(PAPER)
    pairs = zip(judgements(one, published), judgements(two, published), strict=True)
    judged = [pair for pair in pairs if pair[0].findings and pair[1].findings]
    other = [(a, b) for a, b in judged if a.verdict != b.verdict]
    same = len(judged) - len(other)
    lines = [f"claims: {same} of {len(judged)} have the same verdict"] if judged else []
    return lines + [f"  {a.claim.id}: {a.verdict} and {b.verdict}" for a, b in other]


def _manifests(world: Path) -> Iterator[Path]:
    """Yield a world's manifests in the order of the work."""
    found: dict[Path, None] = {}
    for pattern in _ORDER:
        found |= dict.fromkeys(sorted(world.glob(f"{pattern}/{NAME}")))
    yield from found
    yield from sorted(world.glob(_SCORED))


def _why(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Say what two manifests of a step with other outputs say of its cause."""
    changed = []
    for name in _CAUSES:
        if keys := other_keys(one.get(name), two.get(name)):
            changed.append(f"{name} ({listed(keys)})" if keys != [""] else name)
    return f"other {'; '.join(changed)}" if changed else "although all that is recorded is equal"


def _same_file(recorded: object, path: Path) -> bool:
    """Say whether a file of another run has a recorded hash."""
    kind = kind_of(recorded)
    try:
        return kind is not None and hash_cached(path, kind) == recorded
    except UserError:
        return False


def _other_outputs(first: Mapping[str, Any], second: Mapping[str, Any], folder: Path) -> list[str]:
    """Name the outputs that differ between two manifests of a step, the second's in a folder.

    If only one of them has weights hashed with BLAKE3, the second's weights are read and hashed as
    the first's were, and what names models by their hashes is not compared.
    """
    one, two = first.get("outputs", {}), second.get("outputs", {})
    found = other_keys(one, two)
    new = [
        BLAKE3 in map(kind_of, [*about.get("inputs", {}).values(), *outputs.values()])
        for about, outputs in ((first, one), (second, two))
    ]
    if new[0] == new[1]:
        return found
    return [
        name
        for name in found
        if name not in _NAMING
        and not (
            kind_of(one.get(name)) != kind_of(two.get(name))
            and _same_file(one.get(name), folder / name)
        )
    ]


def _first_step(one: Path, two: Path) -> list[str]:
    """Say for each world which step is the first that left other outputs, and why."""
    lines = []
    worlds = sorted({path.parent.name for path in one.glob("*/data") if path.is_dir()})
    for world in worlds:
        compared = 0
        for manifest in _manifests(one / world):
            place = manifest.relative_to(one)
            if not (two / place).is_file():
                continue
            first, second = read_manifest(manifest), read_manifest(two / place)
            compared += 1
            outputs = _other_outputs(first, second, (two / place).parent)
            if outputs:
                step = str(place.parent if place.name == NAME else place)
                lines.append(f"{world}: the first step with other outputs is {step}: "
                             f"{listed(outputs)}; {_why(first, second)}")  # fmt: skip
                break
        else:
            if compared:
                lines.append(f"{world}: all {compared} steps that both have left the same outputs")
    return lines


def differences(results: Path, other: Path) -> list[str]:
    """Say in lines what differs between two runs besides the cells of their tables.

    Args:
        results: Results folder of one, or its kept scores, of which no steps are known.
        other: The same of the other.

    Raises:
        UserError: A file is damaged.
    """
    lines: list[str] = []
    with _experiment(results) as one, _experiment(other) as two:
        if one and two:
            lines += _claims(one, two)
            keys = other_keys(one.config, two.config)
            lines += [f"configuration: other {listed(keys)}"] if keys else []
    if results.is_dir() and other.is_dir():
        try:
            lines += _first_step(results, other)
        except AttributeError:
            problem = "a manifest is not an object; make its folder again"
            raise UserError(f"{results} or {other}: {problem}") from None
    return lines
