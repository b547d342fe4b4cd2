"""The study's text from one seed: training rows of every role, and items of every task."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bottle.data import check_disjoint, draw_items, training_row
from bottle.samples import Sample, draw_mixture
from bottle.tokenizer import build_tokenizer
from bottle.training import Text, tokenise
from common.errors import UserError
from studies.scale import skills

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPLITS = ("dev", "test")


@dataclass(frozen=True)
class World:
    """All text of one seed, tokenised.

    Attributes:
        vocabulary: Number of tokens.
        train: Training texts by role: the base, every skill, and the multitask model.
        calibration: By skill, texts from its expert's training distribution, for DAM.
        items: By split and task, items of which all answer tokens are scored.
    """

    vocabulary: int
    train: Mapping[str, Sequence[Text]]
    calibration: Mapping[str, Sequence[Text]]
    items: Mapping[str, Mapping[str, Sequence[Text]]]


def _items(seed: int, counts: Mapping[str, int]) -> dict[tuple[str, str], list[Sample]]:
    found = {}
    for split in SPLITS:
        for task, generate in skills.tasks().items():
            draw = random.Random(f"scale {seed} {split} {task}")
            samples = draw_items(generate, draw, split, counts[split], whole_sentence=False)
            if not samples:
                raise UserError(f"studies.scale: no {split} item of {task}; ask for at least one")
            found[split, task] = samples
    return found


def make_world(
    seed: int, train_rows: Mapping[str, int], calibration_rows: int, items: Mapping[str, int]
) -> World:
    """Draw the text of a seed; facts are the bottle's, the same for every seed.

    Args:
        seed: Seed of all draws.
        train_rows: Rows by role.
        calibration_rows: Rows of each skill for DAM.
        items: Items of each task by split, ``dev`` and ``test``.

    Raises:
        UserError: A split shows an item of another one.
    """
    mixtures = skills.mixtures()
    # Each role and task has a stream, so that more rows of one change no other.
    drawn = {}
    for role, parts in mixtures.items():
        draw = random.Random(f"scale {seed} train {role}")
        drawn["train", role] = draw_mixture(parts, draw, train_rows[role])
    for role in skills.SKILLS:
        draw = random.Random(f"scale {seed} calibration {role}")
        drawn["calibration", role] = draw_mixture(mixtures[role], draw, calibration_rows)
    items_drawn = _items(seed, items)
    rows = {name: [training_row(sample) for sample in samples] for name, samples in drawn.items()}
    asked = {
        name: [training_row(sample) for sample in found] for name, found in items_drawn.items()
    }
    check_disjoint(
        {"/".join(name): found for name, found in rows.items()},
        {(split, "scale", task): found for (split, task), found in asked.items()},
        frozenset(),
    )
    tokenizer = _tokenizer([*drawn.values(), *items_drawn.values()])
    texts = {name: tokenise(found, tokenizer) for name, found in {**rows, **asked}.items()}
    groups = ("train", "calibration", *SPLITS)
    by_part = {group: {n: t for (own, n), t in texts.items() if own == group} for group in groups}
    return World(
        tokenizer.get_vocab_size(),
        by_part["train"],
        by_part["calibration"],
        {split: by_part[split] for split in SPLITS},
    )


def _tokenizer(groups: Sequence[Sequence[Sample]]) -> Tokenizer:
    return build_tokenizer(
        text for group in groups for sample in group for text in (sample.prompt, sample.answer)
    )
