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
DRIFTS = ("far", "near")


@dataclass(frozen=True)
class Case:
    """One case study.

    Attributes:
        architecture: ``mistral`` or ``llama``, the default class of the model.
        roles: By role, ``base`` first, the mixture that it is trained on: a base that knows
            nothing, and experts that drift far from it.
        near_roles: The same for a competent base, and experts that stay near it.
        suites: By suite and task, the generator of the task's items.
        whole_sentence: Tasks whose choices are complete sentences after a fixed prompt, so that
            items differ in the choices and not in the prompt.
        databases: By name, what writes an SQLite file that the tasks need.
    """

    architecture: str
    roles: Mapping[str, tuple[Part, ...]]
    near_roles: Mapping[str, tuple[Part, ...]]
    suites: Mapping[str, Mapping[str, Generator]]
    whole_sentence: frozenset[str] = frozenset()
    databases: Mapping[str, Callable[[Path, str], None]] = field(default_factory=dict)

    @property
    def experts(self) -> list[str]:
        """Names of the roles that are fine-tuned from the base."""
        return [role for role in self.roles if role != BASE]

    def mixtures(self, drift: str) -> Mapping[str, tuple[Part, ...]]:
        """Return the roles' mixtures by how far experts drift from their base.

        Raises:
            UserError: The drift is neither ``near`` nor ``far``.
        """
        if drift not in DRIFTS:
            raise UserError(f"no drift {drift!r}{nearest(drift, DRIFTS)}; correct --drift")
        return self.near_roles if drift == "near" else self.roles


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
