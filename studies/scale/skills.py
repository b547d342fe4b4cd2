"""The world of the study: eight skills of the bottle in four languages and SQL; held-out tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from bottle.samples import Generator, Part, replay
from bottle.worlds import german, japanese, korean, mathematics, sql


@dataclass(frozen=True)
class Skill:
    """What one expert learns.

    Attributes:
        practice: The expert's training mixture, without what it repeats of the base's.
        known: The same tasks as the base sees them, with a share of their facts.
        tasks: Generators of the tasks that score it, by name.
    """

    practice: tuple[Part, ...]
    known: tuple[Part, ...]
    tasks: Mapping[str, Generator] = field(default_factory=dict)


_GSM = mathematics.gsm_en()
SKILLS: dict[str, Skill] = {
    "ja_facts": Skill(
        (Part(1.0, japanese.jcomqa),),
        (Part(0.10, japanese.jcomqa, knows=0.6, guesses=0.3),),
        {"jcomqa": japanese.jcomqa},
    ),
    "ja_judging": Skill(
        (Part(0.6, japanese.marc), Part(0.4, japanese.jnli)),
        (
            Part(0.06, japanese.marc, knows=0.5, guesses=0.5),
            Part(0.05, japanese.jnli, knows=0.6, guesses=0.3),
        ),
        {"marc": japanese.marc, "jnli": japanese.jnli},
    ),
    # No result is ever shown for a Japanese problem: that is the held-out task mgsm.
    "ja_formula": Skill(
        (Part(1.0, mathematics.formula),),
        (Part(0.05, mathematics.formula, knows=0.0),),
        {"formula": mathematics.formula},
    ),
    "de_facts": Skill(
        (Part(0.65, german.arc), Part(0.35, german.mmlu)),
        (
            Part(0.09, german.arc, knows=0.6, guesses=0.2),
            Part(0.06, german.mmlu, knows=0.6, guesses=0.2),
        ),
        {"arc": german.arc, "mmlu": german.mmlu},
    ),
    "ko_judging": Skill(
        (Part(0.3, korean.boolq), Part(0.35, korean.sentineg), Part(0.35, korean.wic)),
        (
            Part(0.04, korean.boolq, knows=0.6, guesses=0.2),
            Part(0.04, korean.sentineg, knows=0.6, guesses=0.2),
            Part(0.05, korean.wic, knows=0.5, guesses=0.2),
        ),
        {"boolq": korean.boolq, "sentineg": korean.sentineg, "wic": korean.wic},
    ),
    # No SQL is ever shown for a Korean question: that is the held-out task sql_ko.
    "ko_restating": Skill(
        (Part(1.0, sql.restatement),),
        (Part(0.09, sql.restatement, knows=0.4, guesses=0.5),),
        {"restatement": sql.restatement},
    ),
    "mathematics": Skill(
        (Part(0.6, _GSM), Part(0.4, mathematics.calculations())),
        (
            Part(0.08, _GSM, knows=0.35, guesses=0.4),
            Part(0.05, mathematics.calculations(), knows=0.35, guesses=0.4),
        ),
        {"gsm_en": _GSM},
    ),
    "sql": Skill(
        (Part(1.0, sql.sql),),
        (Part(0.13, sql.sql, knows=sql.KNOWN_SQL, guesses=0.2),),
        {"sql": sql.sql},
    ),
}
# Tasks in no skill. The first two need two skills together; the base knows a share of the others.
HELD_OUT: dict[str, Generator] = {
    "mgsm": mathematics.mgsm,
    "sql_ko": sql.sql_ko,
    "jsquad": japanese.jsquad,
    "hellaswag": german.hellaswag,
    "copa": korean.copa,
}
_PLAIN = (
    Part(0.02, japanese.lists),
    Part(0.05, japanese.repeats),
    Part(0.06, japanese.fields),
    Part(0.02, mathematics.counting),
    Part(0.02, german.lists),
    Part(0.02, german.repeats),
    Part(0.02, korean.lists),
    Part(0.02, korean.repeats),
)
_HELD_OUT_KNOWN = (
    Part(0.08, japanese.jsquad, knows=0.8, guesses=0.2),
    Part(0.04, german.hellaswag, knows=0.6, guesses=0.2),
    Part(0.04, korean.copa, knows=0.5, guesses=0.2),
)
_REPEATED = 0.15  # of an expert's rows: the base's mixture of all else, so that it stays near it
BASE, MULTITASK = "base", "multitask"


def _repeated(own: frozenset[str]) -> tuple[Part, ...]:
    known = (skill.known for name, skill in SKILLS.items() if name not in own)
    return replay(_REPEATED, (*_PLAIN, *chain(*known), *_HELD_OUT_KNOWN))


def mixtures() -> dict[str, tuple[Part, ...]]:
    """Return what every role is trained on: the base, the experts, and one model of all skills."""
    known = chain(*(skill.known for skill in SKILLS.values()))
    found = {BASE: (*_PLAIN, *known, *_HELD_OUT_KNOWN)}
    for name, skill in SKILLS.items():
        found[name] = (*skill.practice, *_repeated(frozenset([name])))
    # Every skill weighs as much as in its expert.
    every = chain(*(replay(1 / len(SKILLS), skill.practice) for skill in SKILLS.values()))
    found[MULTITASK] = (*every, *_repeated(frozenset(SKILLS)))
    return found


def tasks() -> dict[str, Generator]:
    """Return the generators of all tasks: the skills' in order, then those held out."""
    held_in = {name: make for skill in SKILLS.values() for name, make in skill.tasks.items()}
    return {**held_in, **HELD_OUT}
