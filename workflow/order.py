"""Inputs that only say what comes first: `ancient`, as Snakemake means it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from snakemake.dag import DAG

_bfs = DAG.bfs


def _until_ancient(dag: DAG, direction: dict, *jobs: Any, **options: Any) -> Iterator[Any]:
    """Go through a DAG; downstream only along inputs whose change makes a job run."""
    if direction is dag.depending:
        chains: dict = defaultdict(dict)
        for job, others in direction.items():
            for other, files in others.items():
                if not all(file.is_ancient for file in files):
                    chains[job][other] = files
        direction = chains
    return _bfs(dag, direction, *jobs, **options)


def respect_ancient() -> None:
    """Have Snakemake look at every job that is not sure to run.

    Snakemake 9.27 takes for granted that all jobs behind one that runs will run too, and does not
    look at them. Where an `ancient` input ends the chain they do not, and their own changed
    parameters would go unnoticed until the next start.
    """
    DAG.bfs = _until_ancient
