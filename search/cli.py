"""Command line of the searches: `python -m search --help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from merges import registry
from merges.cli import pairs, read_settings

if TYPE_CHECKING:
    from merges.requests import WholeModelResult
    from search.workbench import Evaluation, Workbench

_DESCRIPTION = """\
Choose a merge's parameters by its average on the dev items and write the best merge as a model
folder. `tune` tries a list of candidates; `evolve` searches with CMA-ES over each expert's weight
in each layer; `greedy` averages the best expert with each next one that does not make it worse.
Candidates are merged and scored in memory; search.csv in the result lists them all.
"""

_EPILOG = """\
examples:
  python -m search tune --method ties --base models/base --experts ja=models/ja math=models/math \\
      --candidates '[{"density": 0.2}, {"density": 0.5}]' \\
      --data data --suites bottle_ja8 --out merges/ties_tuned
  python -m search evolve --method task_arithmetic --base models/base \\
      --experts ja=models/ja math=models/math --budget 60 \\
      --data data --suites bottle_ja8 --out merges/evolutionary
  python -m search greedy --base models/base --experts ja=models/ja math=models/math \\
      --data data --suites bottle_ja8 --out merges/greedy_soup
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m search",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["tune", "evolve", "greedy"])
    parser.add_argument(
        "--method", help="as python -m merges --list shows it; greedy is always of linear"
    )
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--experts", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="fixed parameters"
    )
    parser.add_argument("--embeddings-and-norms", default="merged", choices=["merged", "base"])
    parser.add_argument("--calibration", nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--teachers", type=Path, metavar="DIR")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with the dev items"
    )
    parser.add_argument("--suites", required=True, metavar="A,B", help="suites to score")
    parser.add_argument(
        "--average",
        metavar="JSON",
        help="the table's columns, each a list of suite/task, whose mean is maximised "
        "(default: the mean over all tasks)",
    )
    parser.add_argument("--candidates", metavar="JSON", help="tune: a list of parameter mappings")
    parser.add_argument("--budget", type=int, metavar="N", help="evolve: evaluations in all")
    parser.add_argument("--population", type=int, metavar="N", help="evolve: per generation")
    parser.add_argument("--sigma", type=float, default=0.3, help="evolve: first step size (0.3)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    return parser


def _json_list(text: str | None, option: str) -> list[Any]:
    try:
        value = json.loads(text or "")
    except json.JSONDecodeError as error:
        raise UserError(f"{option}: not valid JSON ({error}); give a list") from None
    if not isinstance(value, list) or not value:
        raise UserError(f"{option}: give a list with at least one entry")
    return value


class _Search:
    """A method's candidates, merged and scored; the best one's model is kept."""

    def __init__(self, given: argparse.Namespace) -> None:
        from checkpoints.checking import check_compatible
        from checkpoints.reading import Checkpoint
        from evaluation.suites import select
        from search.workbench import Workbench

        self.method = given.method
        self.info = registry.info(given.method)
        self.fixed = registry.check(given.method, read_settings(given.set))
        self.policy = given.embeddings_and_norms
        self.seed, self.threads = given.seed, given.threads
        self.base = Checkpoint(given.base)
        experts = pairs(given.experts, "--experts")
        self.experts = {name: Checkpoint(path) for name, path in experts.items()}
        check_compatible(self.base, self.experts)
        self.calibration = pairs(given.calibration, "--calibration")
        self.teachers = given.teachers
        self.suites = given.suites.split(",")
        tasks = [task.name for task in select(self.suites)]
        self.groups = _json_list(given.average, "--average") if given.average else [tasks]
        self.bench: Workbench = Workbench(
            self.base, given.data, self.suites, self.groups, given.batch_size, given.seed
        )
        self.best: tuple[Evaluation, WholeModelResult, dict] | None = None
        self.counted: dict[str, float] = {}
        self._states = {} if self.info.whole_model else self._load()

    def _load(self) -> dict[str, Mapping]:
        """Read the parents once; a candidate then costs its arithmetic and its evaluation."""
        parents = {"base": self.base, **self.experts}
        return {name: checkpoint.state_dict() for name, checkpoint in parents.items()}

    def _merge(self, parameters: Mapping[str, Any], rules: list | None) -> WholeModelResult:
        from merges.engine import merge_checkpoints, merge_tensors
        from merges.layers import LayerRules
        from merges.requests import WholeModelResult

        if self.info.whole_model:
            return merge_checkpoints(
                self.method,
                self.base,
                self.experts,
                parameters,
                seed=self.seed,
                embeddings_and_norms=self.policy,
                calibration=self.calibration,
                teachers=self.teachers,
                threads=self.threads,
            )
        tensors = merge_tensors(
            self.method,
            self._states["base"],
            {name: self._states[name] for name in self.experts},
            parameters,
            seed=self.seed,
            embeddings_and_norms=self.policy,
            parameters_for=LayerRules(self.method, rules) if rules else None,
        )
        return WholeModelResult(tensors)

    def evaluate(
        self,
        genes: Mapping[str, Any],
        parameters: Mapping[str, Any],
        rules: list | None = None,
        *,
        later_wins: bool = False,
    ) -> Evaluation:
        """Merge and score one candidate; what goes wrong with it is recorded, not raised.

        Args:
            genes: The candidate's parameters, for the table.
            parameters: The method's resolved parameters.
            rules: Parameters that differ between layers.
            later_wins: Whether it is kept when it equals the best so far; else the earlier is.

        Returns:
            The evaluation.
        """
        try:
            result = self._merge(parameters, rules)
        except UserError as error:
            return self.bench.fail(genes, str(error))
        for name, amount in result.counted.items():
            self.counted[name] = self.counted.get(name, 0) + amount
        evaluation = self.bench.evaluate(genes, result.tensors)
        best = self.best[0].average if self.best else -1.0
        score = evaluation.average
        if score is not None and (score > best or (later_wins and score == best)):
            recipe = {"set": dict(parameters), **({"set_layers": rules} if rules else {})}
            self.best = (evaluation, result, recipe)
        return evaluation


def _tune(search: _Search, given: argparse.Namespace) -> dict[str, Any]:
    from common.progress import Progress

    candidates = _json_list(given.candidates, "--candidates")
    resolved = [
        registry.validate(search.method, {**search.fixed, **candidate}) for candidate in candidates
    ]
    progress = Progress(len(candidates), f"tuning {search.method}")
    for candidate, parameters in zip(candidates, resolved, strict=True):
        evaluation = search.evaluate(candidate, parameters)
        progress.step(note=f"dev average {evaluation.average}")
    return {"candidates": candidates}


def _evolve(search: _Search, given: argparse.Namespace) -> dict[str, Any]:
    from common.progress import Progress
    from search import evolutionary

    if given.budget is None:
        raise UserError("evolve needs --budget N, the number of dev evaluations")
    parameters = registry.validate(search.method, search.fixed)
    layers = int(search.base.config["num_hidden_layers"])
    genes = evolutionary.genome(search.method, parameters, list(search.experts), layers)
    progress = Progress(given.budget, f"evolving {search.method}")

    def evaluate(values: Sequence[float]) -> Evaluation:
        named = {gene.name: float(value) for gene, value in zip(genes, values, strict=True)}
        evaluation = search.evaluate(named, parameters, evolutionary.rules(genes, values))
        progress.step(note=f"dev average {evaluation.average}")
        return evaluation

    evolutionary.evolve(
        genes,
        evaluate,
        budget=given.budget,
        population=given.population,
        sigma=given.sigma,
        seed=given.seed,
    )
    return {"budget": given.budget, "population": given.population, "sigma": given.sigma}


def _greedy(search: _Search, given: argparse.Namespace) -> dict[str, Any]:
    from common.progress import Progress
    from search.greedy import greedy

    progress = Progress(2 * len(search.experts) - 1, "greedy soup")

    def evaluate(members: tuple[str, ...]) -> Evaluation:
        weights = {expert: float(expert in members) for expert in search.experts}
        parameters = registry.validate(search.method, {"weights": weights})
        # A soup is accepted if it is not worse than the one before, which is the best so far.
        evaluation = search.evaluate(weights, parameters, later_wins=len(members) > 1)
        progress.step(note=f"{' + '.join(members)}: dev average {evaluation.average}")
        return evaluation

    return {"joined": list(greedy(list(search.experts), evaluate))}


_COMMANDS = {"tune": _tune, "evolve": _evolve, "greedy": _greedy}


def _write(search: _Search, given: argparse.Namespace) -> None:
    from checkpoints.writing import write_checkpoint
    from common import manifest
    from common.cost import measure
    from common.files import staged_directory, write_text
    from merges.checks import check_output
    from merges.output import write_extras

    parents = {"base": search.base} | {f"experts.{n}": e for n, e in search.experts.items()}
    check_output(given.out, [parent.path for parent in parents.values()])
    with staged_directory(given.out) as folder:
        with measure(folder / "cost.json") as cost:
            how = _COMMANDS[given.command](search, given)
            search.bench.best()  # raises where every candidate failed
            evaluation, result, recipe = search.best
            write_checkpoint(folder, result.tensors, search.base.path)
            write_extras(folder, result)
            write_text(folder / "search.csv", search.bench.table())
            cost.count(evaluations=len(search.bench.history), **search.counted)
            cost.count(**{f"dev_{k}": v for k, v in search.bench.counted.items()})
        manifest.write_manifest(
            folder / manifest.NAME,
            kind="merge",
            parameters={
                "method": search.method,
                "experts": list(search.experts),
                "embeddings_and_norms": search.policy,
                **recipe,
                "search": {
                    "kind": given.command,
                    **how,
                    "average": search.groups,
                    "evaluations": len(search.bench.history),
                    "chosen": evaluation.index,
                    "dev_average": evaluation.average,
                },
            },
            inputs={
                **{name: parent.fingerprint for name, parent in parents.items()},
                **{f"calibration.{n}": path for n, path in search.calibration.items()},
                **({"teachers": search.teachers} if search.teachers else {}),
                "data": given.data,
            },
            outputs={
                str(path.relative_to(folder)): path
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.name != "cost.json"
            },
            seed=given.seed,
            packages=("checkpoints", "evaluation", "search", *registry.sources(search.method)),
        )
    print(
        f"{given.command}: candidate {evaluation.index} of {len(search.bench.history)} has the "
        f"best dev average, {evaluation.average:.3f}; its merge is in {given.out}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m search --help`.

    Args:
        arguments: The arguments after the program's name.

    Returns:
        The exit code, 0.

    Raises:
        UserError: What the user can mend.
    """
    given = build_parser().parse_args(arguments)
    if given.command == "greedy":
        if given.method not in (None, "linear") or given.set:
            raise UserError("greedy is a uniform soup; leave --method and --set out")
        given.method = "linear"
    elif given.method is None:
        raise UserError(f"{given.command} needs --method; see python -m merges --list")
    # Mistakes in the candidates are told before torch is imported.
    fixed = registry.check(given.method, read_settings(given.set))
    if given.command == "tune":
        for candidate in _json_list(given.candidates, "--candidates"):
            registry.validate(given.method, {**fixed, **candidate})
    import torch

    torch.set_num_threads(given.threads)
    _write(_Search(given), given)
    return 0
