"""The two case studies: which roles are trained on what, which tasks are scored."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bottle.samples import Generator, Part
from common.errors import UserError, nearest

BASE = "base"
CASES = ("case1", "case2")


@dataclass(frozen=True)
class Case:
    """One case study.

    Attributes:
        architecture: ``mistral`` or ``llama``, the default class of the model.
        roles: By role, ``base`` first, the mixture that it is trained on.
        suites: By suite and task, the generator of the task's items.
        whole_sentence: Tasks whose choices are complete sentences after a fixed prompt, so that
            items differ in the choices and not in the prompt.
        databases: By name, what writes an SQLite file that the tasks need.
    """

    architecture: str
    roles: Mapping[str, tuple[Part, ...]]
    suites: Mapping[str, Mapping[str, Generator]]
    whole_sentence: frozenset[str] = frozenset()
    databases: Mapping[str, Callable[[Path, str], None]] = field(default_factory=dict)

    @property
    def experts(self) -> list[str]:
        """Names of the roles that are fine-tuned from the base."""
        return [role for role in self.roles if role != BASE]


def get_case(name: str) -> Case:
    """Return a case study by name.

    Raises:
        UserError: There is no such case.
    """
    if name not in CASES:
        raise UserError(f"no case {name!r}{nearest(name, CASES)}; correct --case")
    return importlib.import_module(f"bottle.{name}").CASE


def get_role(case: str, role: str) -> tuple[Part, ...]:
    """Return the mixture that a role of a case is trained on.

    Raises:
        UserError: There is no such case or role.
    """
    roles = get_case(case).roles
    if role not in roles:
        raise UserError(f"no role {role!r} in {case}{nearest(role, roles)}; correct --role")
    return roles[role]
