"""A user's own tasks: a file of JSON lines and one entry in a YAML make one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import UserError, nearest
from common.yaml_files import read_yaml
from evaluation.rows import COLUMNS, METRICS
from evaluation.suites import load_suites


class FewShot(BaseModel):
    """Solved examples in front of each item."""

    model_config = ConfigDict(extra="forbid")
    pool: str = Field(description="JSON lines with the task's columns, from which they are drawn")
    count: int = Field(ge=1, description="examples in front of each item")


class OwnTask(BaseModel):
    """One entry under `tasks`, by the task's name SUITE/TASK.

    Relative paths are looked for from the folder in which the command runs.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["multiple_choice", "generation", "sql"] | None = Field(
        None, description="what is asked; needed unless lm_eval is given"
    )
    items: str | None = Field(None, description="JSON lines: the test items, or all items")
    dev_items: str | None = Field(
        None, description="JSON lines: the dev items; without it, a share of `items`"
    )
    dev_share: float = Field(
        0.25, gt=0, lt=1, description="share of `items` that is dev, chosen by a hash of the id"
    )
    columns: dict[str, str] = Field(
        {}, description="the file's names of the columns, where they differ from the kind's"
    )
    few_shot: FewShot | None = Field(None, description="solved examples in front of each item")
    metric: str | None = Field(None, description="score in tables (acc, exact_match, execution)")
    label: str | None = Field(None, description="title in tables; the task's name without it")
    delimiter: str = Field(" ", description="what joins prompt and answer, as in lm-eval")
    max_tokens: int = Field(32, ge=1, description="the most tokens that a model writes")
    databases: str | None = Field(None, description="folder of the SQLite files of kind sql")
    chance: float | None = Field(
        None, ge=0, le=1, description="score of a random choice; counted without it"
    )
    lm_eval: str | None = Field(None, description="a task's YAML of lm-eval, instead of `kind`")

    @property
    def asked(self) -> Literal["multiple_choice", "generation", "sql"]:
        """The kind; a task of lm-eval whose YAML is not read yet counts as multiple choice."""
        return self.kind or "multiple_choice"

    @model_validator(mode="after")
    def _is_one_task(self) -> OwnTask:
        if (self.kind is None) == (self.lm_eval is None):
            raise ValueError("give either 'kind' or 'lm_eval'")
        if self.kind is None:
            return self
        if self.items is None:
            raise ValueError("no 'items'; name a file of JSON lines")
        for column in self.columns:
            if column not in COLUMNS[self.kind]:
                raise ValueError(
                    f"columns: a row of kind {self.kind} has no {column!r}"
                    f"{nearest(column, COLUMNS[self.kind])}"
                )
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            valid = nearest(self.metric, METRICS[self.kind])
            raise ValueError(f"metric: kind {self.kind} has no {self.metric!r}{valid}")
        if (self.kind == "sql") != (self.databases is not None):
            raise ValueError("'databases', a folder of SQLite files, belongs to kind sql")
        return self


def _fault(name: str, error: ValidationError) -> str:
    """Say the first fault of an entry in one line."""
    first = error.errors()[0]
    place = ["tasks", name, *map(str, first["loc"])]
    if first["type"] == "extra_forbidden":
        key = place.pop()
        fields = (FewShot if "few_shot" in place else OwnTask).model_fields
        return f"unknown key {key!r} at {'.'.join(place)}{nearest(key, fields)}"
    near = nearest(first["input"], COLUMNS) if first["type"] == "literal_error" else ""
    return f"{'.'.join(place)}: {first['msg'].removeprefix('Value error, ')}{near}"


def parse(tasks: Any) -> dict[str, OwnTask]:
    """Check the entries under `tasks`, as read from YAML, by the task's name.

    Raises:
        UserError: An entry is no task; one line with its place.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise UserError("tasks: no entries; give SUITE/TASK: {kind: ..., items: FILE}")
    found = {}
    for name, entry in tasks.items():
        suite, _, id = str(name).partition("/")
        if not all(part.isidentifier() and part == part.lower() for part in (suite, id)):
            raise UserError(
                f"tasks.{name}: not a task's name; give SUITE/TASK in small letters, digits and _"
            )
        if suite in load_suites():
            raise UserError(f"tasks.{name}: {suite} is a suite of this project; use another name")
        try:
            found[name] = OwnTask.model_validate(entry)
        except ValidationError as error:
            raise UserError(_fault(name, error)) from None
    return found


def read_tasks(path: Path) -> dict[str, OwnTask]:
    """Read the entries under `tasks` of a YAML file, such as a configuration.

    Raises:
        UserError: There is no such file, or an entry is no task.
    """
    if not path.exists() or path.is_dir():
        raise UserError(f"{path}: no such file; correct the path")
    content = read_yaml(path)
    try:
        return parse(content.get("tasks") if isinstance(content, Mapping) else None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
