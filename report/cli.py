"""Command line of the report: tables, figures, the page, and a look at the terminal."""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:
    from report.experiment import Experiment

_EXAMPLES = """examples (R stands for results/bottle):
  python -m report tables  --config R/config.json --results R --out R/tables
  python -m report figures --config R/config.json --results R --out R/figures
  python -m report page    --config R/config.json --results R --figures R/figures \\
      --tables R/tables --out R/report.html
  python -m report show    --config R/config.json --results R --out R
  python -m report results --config R/config.json --results R  # pages in docs/; without both: again
  python -m report figures --kept docs/results/bottle.jsonl --out figures  # without a finished run
  python -m report compare R OTHER --csv cells.csv
  python -m report explain table1 "DAM (tuned)" MGSM --results R
Only score files are needed (<case>/scores/test/<model>.json); nothing is merged or evaluated.
A model without scores becomes a row that says so. A damaged file costs its row or cell: all else is
made, each fault is a line on standard error, and the exit code is 1 (with --go-on 0)."""


@contextlib.contextmanager
def _experiment(given: argparse.Namespace) -> Iterator[Experiment]:
    """Read the run that the options name: a results folder, or the scores kept of one."""
    from report import load

    if not given.kept and not (given.config and given.results):
        raise UserError("give --config and --results of a run, or --kept with a run's kept scores")
    if not given.kept:
        yield load.load(given.config, given.results)
    elif not given.kept.exists():
        raise UserError(f"--kept {given.kept}: no such file; docs/results holds those of docs")
    else:
        from report import kept  # no step of the workflow reads kept scores

        with kept.opened(given.kept) as experiment:
            yield experiment


def _faults(experiment: Experiment, given: argparse.Namespace, more: Sequence[str] = ()) -> int:
    """Say what was damaged and is missing in what has been made; return the exit code."""
    from common.calling import say
    from report.cost import read_costs

    lines = dict.fromkeys([*experiment.faults, *read_costs(experiment)[1], *more])
    for line in lines:
        say(f"error: {line}")
    return int(bool(lines) and not given.go_on)


def _tables(given: argparse.Namespace) -> int:
    from common.files import write_text
    from report import cost, tables

    with _experiment(given) as experiment:
        written = tables.write(experiment, given.out)
        found, code = cost.costs(experiment), _faults(experiment, given)
    path = given.cost or given.out.parent / "cost.csv"
    if found:
        write_text(path, cost.cost_csv(found))
    measured = f"; measured costs: {path}" if found else ""
    print(f"{len(written)} files of tables: {given.out}{measured}")
    return code


def _figures(given: argparse.Namespace) -> int:
    from report import figures

    with _experiment(given) as experiment:
        written, code = figures.write(experiment, given.out), _faults(experiment, given)
    print(f"{len(written)} files of figures: {given.out}")
    return code


def _page(given: argparse.Namespace) -> int:
    from report import page, published

    if given.claims != published.CLAIMS and not given.claims.exists():
        raise UserError(
            f"--claims {given.claims}: no such file; `python -m report results` makes it"
        )
    paper = published.load(given.published)
    with _experiment(given) as experiment:
        places = given.figures, given.tables, paper, given.out, given.items, given.claims
        code = _faults(experiment, given, page.write(experiment, *places))
    print(f"report: {given.out}")
    return code


def _show(given: argparse.Namespace) -> int:
    from report import show

    with _experiment(given) as experiment:
        print(show.show(experiment, given.out), end="")
        return _faults(experiment, given)


def _results(given: argparse.Namespace) -> None:
    from report import docs

    if bool(given.config) != bool(given.results):
        raise UserError("--config and --results belong together; give both or neither")
    if given.elsewhere and not given.results:
        raise UserError("--elsewhere keeps a run; name it with --config and --results")
    if given.results:
        docs.add(given.config, given.results, given.docs, given.elsewhere)
    drawn = docs.draw(given.docs) if given.figures else []
    print("\n".join(map(str, [*drawn, *docs.write(given.docs)])))


def _compare(given: argparse.Namespace) -> int:
    from report import compare

    return compare.compare(given.first, given.second, given.csv)


def _explain(given: argparse.Namespace) -> None:
    from report import explain, load

    config = given.config or given.results / "config.json"
    if not config.exists():
        raise UserError(
            f"{config}: no such file, so no run has ended there; run `make reproduce`, or name "
            "another folder with --results"
        )
    experiment = load.load(config, given.results)
    print(explain.explain(experiment, given.table, given.row, given.column, given.seed), end="")


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m report --help`."""
    from report.published import CLAIMS, PAPER

    parser = argparse.ArgumentParser(
        prog="python -m report",
        description="Make the paper's tables (CSV, Markdown, LaTeX), their figures (PNG, PDF) and "
        "one self-contained HTML page from the scores in a results folder.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, run: Callable, out: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        made.add_argument("--config", type=Path, help="the resolved configuration (config.json)")
        made.add_argument("--results", type=Path, help="the results folder")
        made.add_argument("--kept", type=Path, help="kept scores of a run, instead of these two")
        made.add_argument("--out", type=Path, required=True, help=out)
        made.add_argument("--go-on", action="store_true", help="exit with 0 despite damaged files")
        made.add_argument("--threads", type=int, default=1, help="accepted and not needed")
        return made

    made = command("tables", "write all tables and cost.csv", _tables, "folder of the tables")
    made.add_argument(
        "--cost", type=Path, help="file of the measured costs (default: cost.csv next to --out)"
    )
    command("figures", "draw all figures", _figures, "folder of the figures")
    made = command("page", "build the HTML page", _page, "the page, an HTML file")
    made.add_argument("--figures", type=Path, help="folder of the figures, to which it links")
    made.add_argument("--items", type=Path, help="folder for the answers, which it loads on demand")
    made.add_argument("--tables", type=Path, help="folder of the tables, to which the page links")
    made.add_argument(
        "--published", type=Path, default=PAPER, help="the paper's values (default: %(default)s)"
    )
    about = "claims of other experiments, shown next to this one's (default: %(default)s)"
    made.add_argument("--claims", type=Path, default=CLAIMS, metavar="FILE", help=about)
    command("show", "print the tables", _show, "folder with report.html, tables and figures")
    # No `command`: it has defaults for everything, so that `make docs` needs no finished run.
    about = "write docs/results/NAME.md, their index and README's numbers"
    made = commands.add_parser("results", help=about, description=about)
    made.set_defaults(run=_results)
    made.add_argument("--config", type=Path, help="configuration (config.json) of a run to keep")
    made.add_argument("--results", type=Path, help="results folder of that run")
    about = "keep it as a run on another processor, for docs/results/processors.md"
    made.add_argument("--elsewhere", action="store_true", help=about)
    about = "draw the figures of these pages again too, from the kept scores"
    made.add_argument("--figures", action="store_true", help=about)
    made.add_argument("--docs", type=Path, default=Path("docs"), help="default: %(default)s")
    about = "compare the tables of two runs, cell by cell"
    more = (
        ". The exit code is 0 where both have the same rows and columns and every cell agrees "
        "within two of its combined errors, else 1; the other cells are named. It also says which "
        "claims have another verdict, which settings differ and which step was the first to."
    )
    made = commands.add_parser("compare", help=about, description=about.capitalize() + more)
    made.set_defaults(run=_compare)
    about = "folder of a finished run, or its kept scores (docs/results/bottle.jsonl)"
    made.add_argument("first", type=Path, metavar="RESULTS", help=about)
    made.add_argument("second", type=Path, metavar="OTHER", help="another one, or its kept scores")
    made.add_argument("--csv", type=Path, metavar="FILE", help="write all cells here")
    about = "explain a number: its parts, files, recipe, inputs, and the command that makes it"
    made = commands.add_parser("explain", help=about, description=about)
    made.set_defaults(run=_explain)
    made.add_argument("table", metavar="TABLE", help="table1, table2_more, table3 ...")
    made.add_argument("row", metavar="ROW", help="its label or its name in the configuration")
    made.add_argument("column", metavar="COLUMN", help="the column's title")
    made.add_argument("--seed", type=int, metavar="N", help="one world or run (default: all)")
    about = "results folder (default: %(default)s)"
    made.add_argument("--results", type=Path, default=Path("results/bottle"), help=about)
    made.add_argument("--config", type=Path, help="default: config.json there")
    given = parser.parse_args(arguments)
    gc.disable()  # millions of small objects, of which hardly one is in a cycle
    try:
        return given.run(given) or 0
    finally:
        gc.enable()
