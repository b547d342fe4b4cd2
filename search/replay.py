"""What a finished search would have chosen after fewer evaluations, from its record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.reading import Checkpoint, Model
from checkpoints.vocabulary import Alignment, align
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


def genome_of(space: Space, row: Mapping[str, str]) -> list[float]:
    """Read a candidate from its row; the table has all digits."""
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
        if not parent.has_fingerprint(searched[name]):
            raise UserError(
                f"{parent.path}: not the model that {given.of} searched with as {name}; give that "
                "one, or search again"
            )
    return base, {name: experts[name] for name in record["parameters"]["experts"]}


def reopen(
    given: argparse.Namespace, record: Mapping[str, Any]
) -> tuple[dict[str, Checkpoint], Alignment, Space]:
    """Open a finished search whose candidates are to be made again, to the bit.

    Args:
        given: The command line: `of`, `base`, `experts`.
        record: The search's manifest.

    Returns:
        The base and the experts as given, the same with one vocabulary, and the space.

    Raises:
        UserError: The models are others than the search's, or its method needs its data again.
    """
    base, experts = _parents(given, record)
    aligned = align(base, experts, record["parameters"].get("vocabulary", "refuse"))
    space = _space(record, aligned.base, aligned.experts)
    return {"base": base, **experts}, aligned, space


def write_candidate(
    folder: Path,
    record: Mapping[str, Any],
    opened: tuple[dict[str, Checkpoint], Alignment, Space],
    genome: list[float],
    about: Mapping[str, Any],
    code: Sequence[str],
) -> None:
    """Write a candidate's model with its record.

    Args:
        folder: Where; it exists.
        record: The search's manifest.
        opened: What `reopen` returned.
        genome: The candidate.
        about: What the record says of it, besides what it says of the search.
        code: Files that chose it, with those that merge added here.
    """
    models, aligned, space = opened
    recipe = space.decode(genome)
    with measure(folder / "cost.json") as cost:
        result.write_model(folder, space, recipe, aligned.base)
        cost.count(evaluations=0)
    search = record["parameters"]["search"]
    said = {name: value for name, value in search.items() if name not in ("joined", "fitness")}
    result.write_record(
        folder,
        space,
        recipe,
        {**said, **about},
        models=models,
        inputs=record["inputs"],
        vocabulary=record["parameters"].get("vocabulary", "refuse"),
        notes=aligned.notes,
        seed=record["seed"],
        code=(*code, *registry.sources(search["space"].get("method", "linear"))),
    )


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
    opened = models, _, space = reopen(given, record)
    history = []
    # The genomes are in the table with all digits, so the model is the same to the bit.
    for row in rows[: given.evaluations]:
        genome = genome_of(space, row)
        average = float(row["dev_average"]) if row["dev_average"] else None
        history.append(
            Evaluation(
                int(row["evaluation"]), space.named(genome), average, {}, row["failure"], genome
            )
        )
    winner = winner_of(space, history)
    check_output(given.out, [given.of, *(model.path for model in models.values())])
    about = {
        "evaluations": given.evaluations,
        "chosen": winner.index,
        "dev_average": winner.average,
        "replayed_of": len(rows),
    }
    code = ("search/replay.py", "search/dataflow.py")
    with staged_directory(given.out) as folder:
        write_candidate(folder, record, opened, winner.genome, about, code)
    return (
        f"replay: after {given.evaluations} of {len(rows)} evaluations candidate {winner.index} "
        f"has the best dev average, {winner.average:.3f}; its model is in {given.out}"
    )
