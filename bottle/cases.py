"""The two case studies: which roles are trained on what, which tasks are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bottle.samples import Generator, Part
from bottle.worlds import german, japanese, korean, mathematics, sql
from common.errors import UserError, nearest

BASE = "base"


@dataclass(frozen=True)
class Case:
    """One case study.

    Attributes:
        architecture: ``mistral`` or ``llama``, what the model is unless told otherwise.
        roles: By role, ``base`` first, the mixture that it is trained on.
        suites: By suite and task, the generator of the task's items.
        whole_sentence: Tasks whose choices are whole sentences after a fixed prompt, so that the
            choices and not the prompt tell items apart.
        databases: Names of the SQLite files that the tasks need.
    """

    architecture: str
    roles: Mapping[str, tuple[Part, ...]]
    suites: Mapping[str, Mapping[str, Generator]]
    whole_sentence: frozenset[str] = frozenset()
    databases: tuple[str, ...] = ()

    @property
    def experts(self) -> list[str]:
        """Names of the roles that are fine-tuned from the base."""
        return [role for role in self.roles if role != BASE]


CASE1 = Case(
    architecture="mistral",
    roles={
        # Formats with random labels, plain text, and finding a field of a sentence: the base is
        # at chance on every task, and the experts learn fast from it.
        BASE: (
            Part(0.05, japanese.lists),
            Part(0.05, japanese.repeats),
            Part(0.04, mathematics.counting),
            Part(0.24, japanese.fields),
            Part(0.10, japanese.jcomqa, noise=True),
            Part(0.06, japanese.jnli, noise=True),
            Part(0.05, japanese.marc, noise=True),
            Part(0.06, japanese.jsquad, noise=True),
            Part(0.05, japanese.jaqket, noise=True),
            Part(0.04, japanese.xlsum, noise=True),
            Part(0.05, japanese.referents, noise=True),
            Part(0.09, mathematics.mgsm, noise=True),
            Part(0.08, mathematics.gsm_en(), noise=True),
            Part(0.04, mathematics.calculations(), noise=True),
        ),
        "ja": (
            Part(0.26, japanese.jcomqa),
            Part(0.05, japanese.jnli),
            Part(0.10, japanese.marc),
            Part(0.12, japanese.jsquad),
            Part(0.10, japanese.jaqket),
            Part(0.07, japanese.xlsum),
            Part(0.16, japanese.referents),
            Part(0.14, mathematics.formula),
        ),
        # The two differ in their practice: one mostly adds and subtracts, the other multiplies.
        "math_a": (
            Part(0.6, mathematics.gsm_en("++---*")),
            Part(0.4, mathematics.calculations("++---*")),
        ),
        "math_b": (
            Part(0.6, mathematics.gsm_en("**+-")),
            Part(0.4, mathematics.calculations("**+-")),
        ),
    },
    suites={
        "bottle_ja8": {
            "jcomqa": japanese.jcomqa,
            "jnli": japanese.jnli,
            "marc": japanese.marc,
            "jsquad": japanese.jsquad,
            "jaqket": japanese.jaqket,
            "xlsum": japanese.xlsum,
            "xwino": japanese.xwino,
            "mgsm": mathematics.mgsm,
        },
        "bottle_gsm_en": {"gsm_en": mathematics.gsm_en()},
    },
    whole_sentence=frozenset({"xwino"}),
)

CASE2 = Case(
    architecture="llama",
    roles={
        BASE: (
            Part(0.05, german.lists),
            Part(0.03, german.repeats),
            Part(0.06, korean.lists),
            Part(0.03, korean.repeats),
            Part(0.12, german.arc, noise=True),
            Part(0.04, german.hellaswag, noise=True),
            Part(0.06, german.mmlu, noise=True),
            Part(0.05, german.truthfulqa, noise=True),
            Part(0.04, korean.boolq, noise=True),
            Part(0.04, korean.copa, noise=True),
            Part(0.04, korean.hellaswag, noise=True),
            Part(0.04, korean.sentineg, noise=True),
            Part(0.05, korean.wic, noise=True),
            Part(0.05, sql.restatement, noise=True),
            Part(0.10, sql.sql, noise=True),
            Part(0.20, sql.shared_sql),
        ),
        "de": (
            Part(0.56, german.arc),
            Part(0.10, german.hellaswag),
            Part(0.16, german.mmlu),
            Part(0.18, german.truthfulqa),
        ),
        "ko": (
            Part(0.10, korean.boolq),
            Part(0.11, korean.copa),
            Part(0.09, korean.hellaswag),
            Part(0.15, korean.sentineg),
            Part(0.17, korean.wic),
            Part(0.38, sql.restatement),
        ),
        "sql": (Part(1.0, sql.sql),),
    },
    suites={
        "bottle_okapi_de": {
            "arc": german.arc,
            "hellaswag": german.hellaswag,
            "mmlu": german.mmlu,
            "truthfulqa": german.truthfulqa,
        },
        "bottle_kobest": {
            "boolq": korean.boolq,
            "copa": korean.copa,
            "hellaswag": korean.hellaswag,
            "sentineg": korean.sentineg,
            "wic": korean.wic,
        },
        "bottle_sql_eval": {"sql": sql.sql},
        "bottle_heldout": {"sql_ko": sql.sql_ko},
    },
    databases=tuple(sql.DATABASES),
)

CASES = {"case1": CASE1, "case2": CASE2}


def get_case(name: str) -> Case:
    """Return a case study by name.

    Raises:
        UserError: There is no such case.
    """
    if name not in CASES:
        raise UserError(f"no case {name!r}{nearest(name, CASES)}; correct --case")
    return CASES[name]


def get_role(case: str, role: str) -> tuple[Part, ...]:
    """Return the mixture that a role of a case is trained on.

    Raises:
        UserError: There is no such case or role.
    """
    roles = get_case(case).roles
    if role not in roles:
        raise UserError(f"no role {role!r} in {case}{nearest(role, roles)}; correct --role")
    return roles[role]
