"""The claims about scale, judged: differences and slopes in each world, and their intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from report.averages import spread_of
from report.pairs import Test
from report.published import Claim
from report.verdicts import FAILS, HOLDS, OPEN, Finding, Judgement, judge
from studies.scale.load import Merge, Study
from studies.scale.skills import MULTITASK

_PATH = Path(__file__).with_name("claims.yaml")
TABLE = "Scale"  # what findings call the sweep
Values = Mapping[int, float]  # by seed


def claims() -> list[Claim]:
    """Read the claims."""
    content = yaml.safe_load(_PATH.read_text(encoding="utf-8"))
    return [
        Claim(claim["id"], claim["sentence"], (TABLE,), tuple(claim["tests"]))
        for claim in content["claims"]
    ]


def over_worlds(values: Values) -> Test:
    """Return the mean over worlds with its t interval; without bounds for a single world."""
    from scipy.special import stdtr, stdtrit

    found = spread_of(list(values.values()))
    if found.deviation is None:
        return Test(found.mean, -math.inf, math.inf, math.nan, math.inf)
    error, freedom = found.deviation / math.sqrt(found.runs), found.runs - 1
    reach = float(stdtrit(freedom, 0.975)) * error
    p = 2 * float(stdtr(freedom, -abs(found.mean) / error)) if error else float(found.mean == 0)
    return Test(found.mean, found.mean - reach, found.mean + reach, p, error, freedom)


def _value(merge: Merge, of: str) -> float | None:
    return merge.held_in if of == "held_in" else merge.held_out


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of y over x; NaN where x does not vary."""
    centred = np.asarray(x, float) - np.mean(x)
    square = float(centred @ centred)
    return float(centred @ np.asarray(y, float)) / square if square else math.nan


def _spreads(merges: Sequence[Merge]) -> list[tuple[Merge, float]]:
    """Return the deviation (divisor n) between methods of every set of experts that has several."""
    sets: dict[Any, list[Merge]] = defaultdict(list)
    for merge in merges:
        if merge.held_in is not None:
            sets[merge.size, merge.quality, merge.members].append(merge)
    return [
        (own[0], float(np.std([merge.held_in for merge in own if merge.held_in is not None])))
        for own in sets.values()
        if len(own) > 1
    ]


def _slopes(study: Study, over: str, of: str) -> Values:
    """Return by seed a slope per doubling of size, or per expert, within what is else equal.

    What is else equal has the same quality, and experts and method or size and method, so that the
    slope compares a merge with its like alone.
    """
    found = {}
    for seed in study.seeds:
        merges = [merge for merge in study.merges if merge.seed == seed]
        pairs = (
            _spreads(merges)
            if of == "spread"
            else [(m, v) for m in merges if (v := _value(m, of)) is not None]
        )
        groups: dict[Any, list[tuple[float, float]]] = defaultdict(list)
        for merge, value in pairs:
            method = "" if of == "spread" else merge.method
            if over == "size":
                key: Any = (merge.quality, merge.members, method)
                groups[key].append((math.log2(merge.parameters), value))
            else:
                groups[merge.quality, merge.size, method].append((merge.count, value))
        slopes = [slope(*zip(*group, strict=True)) for group in groups.values()]
        known = [value for value in slopes if not math.isnan(value)]
        if known:
            found[seed] = float(np.mean(known))
    return found


def _quality(study: Study, of: str) -> Values:
    """Return by seed how far merges from the best base are above those from the weakest."""
    qualities = study.config["qualities"]
    weak, best = min(qualities, key=qualities.get), max(qualities, key=qualities.get)
    by_key: dict[Any, dict[str, float]] = defaultdict(dict)
    for merge in study.merges:
        if (value := _value(merge, of)) is not None:
            by_key[merge.seed, merge.size, merge.members, merge.method][merge.quality] = value
    gaps: dict[int, list[float]] = defaultdict(list)
    for (seed, *_), values in by_key.items():
        if weak in values and best in values and weak != best:
            gaps[seed].append(values[best] - values[weak])
    return {seed: float(np.mean(own)) for seed, own in gaps.items()}


def _multitask(study: Study, size: str) -> Values:
    """Return by seed how far merges of the most experts are above the multitask model."""
    qualities, most = study.config["qualities"], max(study.config["counts"])
    best = max(qualities, key=qualities.get)
    gaps: dict[int, list[float]] = defaultdict(list)
    for cell in study.cells:
        if cell.size == size and cell.quality == best:
            reference = cell.reference(MULTITASK).held_out
            gaps[cell.seed] += [
                merge.held_out - reference for merge in cell.merges if merge.count == most
            ]
    return {seed: float(np.mean(own)) for seed, own in gaps.items() if own}


def _findings(study: Study, test: Mapping[str, Any]) -> list[Finding]:
    """Make a test's comparisons; none where nothing can be compared."""
    of, named = test["of"], test["of"].replace("_", "-")
    values: dict[str, Values]
    if "slope" in test:
        per = "doubling of parameters" if test["slope"] == "size" else "expert"
        values = {f"{named} per {per}": _slopes(study, test["slope"], of)}
    elif test["compare"] == "quality":
        values = {f"{named}, best base less weakest": _quality(study, of)}
    else:
        words = f"{named}, merges of {max(study.config['counts'])} less multitask"
        values = {f"{words}, {size}": _multitask(study, size) for size in study.sizes}
    found = []
    for words, own in values.items():
        if own:
            effect = over_worlds(own)
            agree = sum(value * effect.value > 0 for value in own.values())
            verdict = judge(test["is"], effect.low, effect.high)
            found.append(Finding(TABLE, words, verdict, effect, agree, len(own)))
    return found


def _joined(verdicts: Sequence[str], any_: bool = False) -> str:
    first, second = (HOLDS, FAILS) if any_ else (FAILS, HOLDS)
    if first in verdicts:
        return first
    return second if verdicts and set(verdicts) == {second} else OPEN


def judgements(study: Study) -> list[Judgement]:
    """Judge every claim: it holds if all its tests do, fails if one does, and is open otherwise."""
    made = []
    for claim in claims():
        parts = [(_findings(study, test), bool(test.get("any"))) for test in claim.tests]
        verdicts = [_joined([one.verdict for one in own], any_) for own, any_ in parts]
        verdict = _joined(verdicts)
        findings = [one for own, _ in parts for one in own]
        # Of an open claim, the first comparison that leaves it open.
        deciding = next(
            (
                one
                for (own, _), word in zip(parts, verdicts, strict=True)
                for one in own
                if word == verdict and one.verdict == verdict
            ),
            findings[0] if findings else None,
        )
        made.append(Judgement(claim, verdict, tuple(findings), deciding))
    return made
