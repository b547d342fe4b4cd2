"""`python -m checkpoints`."""

from common.client import run

run("checkpoints.cli")
