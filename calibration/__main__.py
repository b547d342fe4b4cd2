"""Entry point of `python -m calibration`."""

from common.cli import run

run("calibration.cli")
