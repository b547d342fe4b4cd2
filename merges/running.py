"""Carries out what the command line of the merges asks for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import pairs
from common.errors import UserError

if TYPE_CHECKING:
    from checkpoints.reading import Model
    from merges.engine.config import MergeConfig


def open_models(
    base: Path | None, experts: Mapping[str, Path], adapters: Mapping[str, Path], pickles: bool
) -> tuple[Model | None, dict[str, Model]]:
    """Open the models; an adapter's folder among the experts is folded into the base."""
    from checkpoints.adapters import open_model

    root = None if base is None else open_model(base, allow_pickle=pickles)
    models: dict[str, Model] = {}
    for name, path in experts.items():
        models[name] = open_model(path, root, allow_pickle=pickles)
        if name in adapters:
            models[name] = open_model(adapters[name], models[name], allow_pickle=pickles)
    return root, models


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _in_one_basis(arguments: argparse.Namespace, config: MergeConfig) -> MergeConfig:
    """Align the experts of a merge that is otherwise checked; a dry run only checks."""
    from checkpoints.checking import check_compatible
    from merges.alignment.aligning import align_models, check_method
    from merges.engine.run import plan

    rows = [Path(path) for path in arguments.align_rows]
    check_method(arguments.align, rows)
    others = {
        "--slices": config.slices,
        "--statistics": config.statistics,
        "--vocabulary": config.vocabulary != "refuse",
        "--to-mergekit": arguments.to_mergekit,
    }
    if clash := [option for option, given in others.items() if given]:
        raise UserError(
            f"--align and {clash[0]} do not go together; write aligned models with "
            "python -m merges align, and merge those"
        )
    config = dataclasses.replace(config, align=arguments.align)
    if arguments.dry_run:
        return config
    plan(arguments.out, config).require()
    check_compatible(config.reference, config.experts)
    found = align_models(config.reference, config.experts, arguments.align, rows)
    for text in found.notes:
        _note(text)
    base = None if config.base is None else found.reference
    return dataclasses.replace(config, base=base, experts=found.experts)


def merge(
    arguments: argparse.Namespace,
    method: str,
    base: Model | None,
    experts: Mapping[str, Model],
    parameters: Mapping[str, Any],
    **found: Any,
) -> None:
    """Merge, or only check; `found` are options that do not have their argument's value."""
    from merges.engine.config import MergeConfig
    from merges.engine.requests import Resuming
    from merges.engine.run import merge_to_disk, plan

    options = {
        "seed": arguments.seed,
        "embeddings_and_norms": arguments.embeddings_and_norms,
        "compute_dtype": arguments.compute_dtype,
        "dtype": arguments.dtype,
        "device": arguments.device,
        "threads": arguments.threads,
        "resuming": arguments.state and Resuming(arguments.state, arguments.save_every),
        "donor": arguments.donor,
        "vocabulary": arguments.vocabulary or "refuse",
        "shard_bytes": arguments.shard_size,
    }
    config = MergeConfig(method, base, experts, parameters, **{**options, **found})
    if arguments.align_rows and not arguments.align:
        raise UserError("--align-rows is for --align activations; give that too")
    if arguments.align:
        config = _in_one_basis(arguments, config)
    if arguments.state and not config.info.whole_model:
        raise UserError(f"method {method} trains nothing that --state could record; leave it out")
    if arguments.to_mergekit:
        from merges.mergekit.exporting import export_config

        export_config(config, arguments.out)
        return
    if arguments.dry_run:
        report = plan(arguments.out, config)
        errors, report.errors = report.errors, report.errors[1:]  # the first ends the program
        print("\n".join(report.lines()), flush=True)
        if errors:
            raise UserError(errors[0])
        return
    merge_to_disk(arguments.out, config, _note)
    print(f"merged {', '.join(experts)} with {method} into {arguments.out}")


def _refuse_a_recipe(arguments: argparse.Namespace, source: str) -> None:
    """Refuse options that a file holds already, and a missing --out."""
    recipe = ("method", "base", "experts", "set", "set_layers", "slices")
    for option in (*recipe, "calibration", "teachers", "statistics"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is in {source}; leave it out")
    if not arguments.out:
        raise UserError("--out is missing; see python -m merges --help")


def write_merge_as_mergekit(arguments: argparse.Namespace) -> None:
    """Write a merged folder's recipe as a mergekit configuration."""
    _refuse_a_recipe(arguments, "the merged folder's recipe")
    from merges.mergekit.exporting import export_merge

    located = pairs(arguments.locate, "--locate", reserved="")
    export_merge(arguments.to_mergekit, located, arguments.out)


def merge_from_mergekit(arguments: argparse.Namespace) -> None:
    """Run a mergekit configuration."""
    _refuse_a_recipe(arguments, "the mergekit configuration")
    from checkpoints.settling import settle
    from merges.mergekit.templates import chosen_template
    from merges.mergekit.translation import translate

    order = translate(arguments.from_mergekit, pairs(arguments.locate, "--locate"))
    for note in order.notes:
        print(note, file=sys.stderr)
    base, experts = open_models(order.base, order.experts, order.adapters, arguments.allow_pickle)
    slices = None
    if order.slices:
        from merges.engine.slices import arrange

        base, experts, slices = arrange(base, experts, order.slices)
    reference = next(iter(experts.values())) if base is None else base
    settled = settle(reference, experts)  # parameters are for the names that the merge has
    settings, rules, dtype = order.resolve(base and settled.base, settled.experts)
    models = {**({} if base is None else {"base": base}), **experts}
    template, notes = chosen_template(order.chat_template, models)
    for note in notes:
        print(note, file=sys.stderr)
    merge(
        arguments,
        order.method,
        base,
        experts,
        settings,
        parameters_for=rules,
        slices=slices,
        dtype=arguments.dtype or dtype,
        compute_dtype="float64" if order.wide else arguments.compute_dtype,
        donor=arguments.donor or order.donor,
        vocabulary=arguments.vocabulary or order.vocabulary or "refuse",
        chat_template=template,
    )
