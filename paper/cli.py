"""Command line of the published scale: `python -m paper --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser
from common.errors import UserError
from common.sources import ROOT
from paper.calibration import cli as calibration
from paper.hub import cli as hub
from paper.rehearsal import cli as rehearsal

_DESCRIPTION = "What serves the paper's experiment on its published checkpoints."
_EXAMPLES = """\
examples:
  python -m paper preflight
  python -m paper preflight --config cask.yaml
  python -m paper list
  python -m paper fetch mistral_7b --out models/mistral_7b
  python -m paper rehearse --out rehearsal-run
Each command explains itself: python -m paper fetch --help. paper/README.md leads through a run.
"""


def _preflight(given: argparse.Namespace) -> None:
    """Print what an experiment will fetch, store, compute and cost; raise what would stop it."""
    from paper import casks, estimate
    from workflow import configuration

    read = configuration.read(given.config)
    accepted = read.get("accept_terms", [])
    # A cask can be planned before its terms are read: those not accepted are named at the end.
    every = casks.all_terms() if isinstance(accepted, list) else accepted
    config = configuration.resolve({**read, "accept_terms": every}, str(given.config))
    results = Path("results") / config.name
    if casks.cask_cases(config):
        lines, errors = casks.report(config, accepted, results)
    else:
        lines, errors = estimate.report(config, results)
    lines += [f"error: {error}" for error in errors[1:]]  # the first ends the program
    print("\n".join(lines), flush=True)
    if errors:
        raise UserError(errors[0])


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m paper --help`."""
    parser = command_parser("paper", _DESCRIPTION, _EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "list what a run will fetch, store, compute and cost, and what would stop it"
    preflight = commands.add_parser("preflight", help=about, description=about)
    preflight.add_argument("--config", type=Path, default=ROOT / "paper.yaml", metavar="FILE")
    preflight.set_defaults(run=_preflight)
    for room in (hub, calibration, rehearsal):
        room.add_commands(commands)
    given = parser.parse_args(arguments)
    given.run(given)
    return 0
