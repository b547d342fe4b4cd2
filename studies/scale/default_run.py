"""The experiment's own merges next to the sweep's: what its inspections say of their outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json
from common.worlds import folder_of, seeds_of
from studies.scale.predictors import Sample, rank_correlation

_LEAST = 3  # worlds, to rank them


def _scores(folder: Path, model: str) -> dict[str, float] | None:
    """Return a model's test scores by task; None where it has none."""
    path = folder / "scores" / "test" / f"{model}.json"
    if not path.exists():
        return None
    return {task: entry["value"] for task, entry in read_json(path)["tasks"].items()}


def _outcome(
    scores: Mapping[str, float],
    experts: Mapping[str, Mapping[str, float]],
    domains: Mapping[str, Sequence[str]],
) -> float:
    """Return a merge's score on each expert's domain over that expert's, the mean over experts."""
    ratios = []
    for expert, domain in domains.items():
        own = math.fsum(experts[expert][task] for task in domain)
        if own > 0:
            ratios.append(math.fsum(scores[task] for task in domain) / own)
    return float(np.mean(ratios))


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return math.fsum(known) / len(known) if known else None


def samples_of(config: Mapping[str, Any], results: Path) -> list[Sample]:
    """Return each world of the experiment as one set of experts; none where it was not run.

    The outcome is that of the sweep: a merge's score on each expert's domain over that expert's,
    the mean over experts, then over all merges. Measures are those that inspections hold, of the
    linear layers.

    Args:
        config: The resolved configuration.
        results: The results folder.
    """
    found = []
    for name, case in config.get("cases", {}).items():
        domains = {e: about["domain"] for e, about in case["experts"].items() if "domain" in about}
        for seed in seeds_of(config):
            world = folder_of(name, seed, seeds_of(config))
            folder = results / world
            experts = {e: s for e in domains if (s := _scores(folder, e)) is not None}
            if not (folder / "inspection.json").exists() or len(experts) < len(domains):
                continue
            outcomes = [
                _outcome(scores, experts, domains)
                for row in config["methods"]
                if (scores := _scores(folder, row)) is not None
            ]
            together = read_json(folder / "inspection.json")["all"]
            measures: dict[str, float | None] = {
                "cosine": _mean(together["cosine"]),
                "conflict": together["conflict"],
                "drift": _mean(together["drift"]),
            }
            present = {key: value for key, value in measures.items() if value is not None}
            if outcomes:
                found.append(Sample(seed, world, len(domains), present, float(np.mean(outcomes))))
    return found


def correlations(samples: list[Sample]) -> dict[str, float]:
    """Return each measure's rank correlation with the outcome over the experiment's worlds."""
    names = dict.fromkeys(name for sample in samples for name in sample.measures)
    found = {}
    for name in names:
        own = [sample for sample in samples if name in sample.measures]
        if len(own) >= _LEAST:
            found[name] = rank_correlation(
                [sample.measures[name] for sample in own], [sample.outcome for sample in own]
            )
    return found
