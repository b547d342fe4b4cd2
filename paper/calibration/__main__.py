"""Entry point of `python -m paper.calibration`."""

from common.cli import run

run("paper.calibration.cli")
