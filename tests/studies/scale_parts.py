"""Records of parts of the study of scale whose scores follow a formula."""

from __future__ import annotations

import itertools

from studies.scale.skills import BASE, HELD_OUT, MULTITASK, SKILLS

METHODS = {"average": {"label": "Average"}, "ties": {"label": "TIES"}}
SIZES = {"small": 100_000, "middle": 400_000, "large": 1_600_000}
TASKS = [task for skill in SKILLS.values() for task in skill.tasks]
CONFIG = {
    "name": "small",
    "studies": {
        "scale": {
            "seeds": [1, 2, 3],
            "sizes": {size: {} for size in SIZES},
            "counts": [2, 4, 8],
            "qualities": {"weak": 0.5, "strong": 1.0},
            "methods": METHODS,
            "unseen": {"size": "large", "count": 4},
        }
    },
}


def scores(held_in, held_out=0.25, loss=1.0):
    """Give all held-in tasks one score, and all held-out ones another."""
    made = {task: held_in for task in TASKS} | dict.fromkeys(HELD_OUT, held_out)
    about = {"tokens": 0.5, "loss": loss, "items": 100}
    return {task: {"exact": exact, **about} for task, exact in made.items()}


def sets():
    """Three sets of two and of four experts, and the one of eight."""
    names = list(SKILLS)
    for count in (2, 4):
        yield from itertools.islice(itertools.combinations(names, count), 3)
    yield tuple(names)


def part(seed, size, merged, measure=lambda place, members: float(place)):
    """Make a part's record: base .2, experts .8 on all tasks, the multitask model .4 held out.

    Args:
        seed: The seed.
        size: The size.
        merged: Gives a merge's held-in and held-out score and loss by quality, members, method.
        measure: Gives the measure `cosine` of the set at a place.
    """
    cells = {}
    for quality in ("weak", "strong"):
        cells[quality] = {
            "models": {
                BASE: scores(0.2),
                MULTITASK: scores(0.7, 0.4),
                **{skill: scores(0.8, loss=2.0) for skill in SKILLS},
            },
            "merges": [
                {
                    "method": method,
                    "members": list(members),
                    "set": {},
                    "scores": scores(*merged(seed, size, quality, members, method)),
                }
                for members in sets()
                for method in METHODS
            ],
            "sets": [
                {"members": list(members), "measures": {"cosine": measure(place, members)}}
                for place, members in enumerate(sets())
            ],
        }
    return {"seed": seed, "size": size, "parameters": SIZES[size], "cells": cells, "cpu_s": 10.0}
