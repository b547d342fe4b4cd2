"""What a finished search would have chosen after fewer evaluations, from its record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from checkpoints.reading import Checkpoint, Model
from checkpoints.vocabulary import align
from common import manifest
from common.cli import pairs
from common.cost import measure
from common.errors import UserError
from common.files import staged_directory
from merges.engine import registry
from merges.engine.checks import check_output
from merges.engine.config import MergeConfig
from search import result
from search.evaluation import Evaluation
from search.merged import ListedSpace, SoupSpace
from search.parameters import ParameterSpace
from search.record import read_table, winner_of
from search.searches import data_flow
from search.space import Space


def _space(record: Mapping[str, Any], base: Model, experts: dict[str, Model]) -> Space:
    """Make the space of a finished search again."""
    search, seed = record["parameters"]["search"], record["seed"]
    about = dict(search["space"])
    kind, method = about.pop("space", search["kind"]), about.pop("method", "linear")
    if kind == "data-flow":
        return data_flow(base, experts, **about)
    merging = MergeConfig(
        method, base, experts, seed=seed, embeddings_and_norms=about["embeddings_and_norms"]
    )
    if registry.info(method).whole_model:
        raise UserError(
            f"method {method} would have to be run again with its data; replay is for searches "
            "over methods that merge parameter by parameter"
        )
    if kind == "tune":
        return ListedSpace(merging, about["set"], about["candidates"])
    if kind == "greedy":
        return SoupSpace(merging)
    return ParameterSpace(merging, about["set"], about["granularity"], about["kinds"])


def _genome(space: Space, row: Mapping[str, str]) -> list[float]:
    if isinstance(space, ListedSpace):
        return [float(row["evaluation"])]
    names = (
        list(space.merging.experts)
        if isinstance(space, SoupSpace)
        else [gene.name for gene in space.genes]
    )
    return [float(row[name]) for name in names]


def _parents(
    given: argparse.Namespace, record: Mapping[str, Any]
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    base = Checkpoint(given.base)
    experts = {n: Checkpoint(path) for n, path in pairs(given.experts, "--experts").items()}
    parents = {"base": base} | {f"experts.{name}": expert for name, expert in experts.items()}
    searched = {
        name: value
        for name, value in record["inputs"].items()
        if name == "base" or name.startswith("experts.")
    }
    if set(searched) != set(parents):
        raise UserError(
            f"{given.of} is a search over {', '.join(sorted(searched))}; give these models"
        )
    for name, parent in parents.items():
        if parent.fingerprint != searched[name]:
            raise UserError(
                f"{parent.path}: not the model that {given.of} searched with as {name}; give that "
                "one, or search again"
            )
    return base, {name: experts[name] for name in record["parameters"]["experts"]}


def replay(given: argparse.Namespace) -> str:
    """Write the model that was best on dev after the first evaluations of a finished search.

    Nothing is evaluated.

    Args:
        given: The command line: `of`, `evaluations`, `base`, `experts`, `out`.

    Raises:
        UserError: The folder is not a search's result, the models are others, or there are fewer
            evaluations.
    """
    rows = read_table(given.of)
    record = manifest.read_manifest(given.of)
    if "search" not in record.get("parameters", {}):
        raise UserError(f"{given.of}: no result of `python -m search`; give one")
    if not 1 <= given.evaluations <= len(rows):
        raise UserError(
            f"{given.of} has {len(rows)} evaluations, not {given.evaluations}; "
            f"give 1 to {len(rows)}"
        )
    base, experts = _parents(given, record)
    vocabulary = record["parameters"].get("vocabulary", "refuse")
    aligned = align(base, experts, vocabulary)
    space = _space(record, aligned.base, aligned.experts)
    history = []
    # The genomes are in the table with all digits, so the model is the same to the bit.
    for row in rows[: given.evaluations]:
        genome = _genome(space, row)
        average = float(row["dev_average"]) if row["dev_average"] else None
        history.append(
            Evaluation(
                int(row["evaluation"]), space.named(genome), average, {}, row["failure"], genome
            )
        )
    winner = winner_of(space, history)
    check_output(given.out, [given.of, base.path, *(expert.path for expert in experts.values())])
    with staged_directory(given.out) as folder:
        recipe = space.decode(winner.genome)
        with measure(folder / "cost.json") as cost:
            result.write_model(folder, space, recipe, aligned.base)
            cost.count(evaluations=0)
        search = record["parameters"]["search"]
        about = search | {
            "evaluations": given.evaluations,
            "chosen": winner.index,
            "dev_average": winner.average,
            "replayed_of": len(rows),
        }
        about.pop("joined", None)
        about.pop("fitness", None)
        result.write_record(
            folder,
            space,
            recipe,
            about,
            models={"base": base, **experts},
            inputs=record["inputs"],
            vocabulary=vocabulary,
            notes=aligned.notes,
            seed=record["seed"],
            code=(
                "search/replay.py",
                "search/dataflow.py",
                *registry.sources(search["space"].get("method", "linear")),
            ),
        )
    return (
        f"replay: after {given.evaluations} of {len(rows)} evaluations candidate {winner.index} "
        f"has the best dev average, {winner.average:.3f}; its model is in {given.out}"
    )
