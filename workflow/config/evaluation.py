"""How models are evaluated, tuned and let through the gate, and how much data there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from common.errors import UserError
from workflow.config.entry import Backend, Count, Entry, NotNegative

ROOT = Path(__file__).resolve().parents[2]


class Interpreters(Entry):
    """Python of the environment in which a backend's evaluations run, if not this one."""

    hf: str | None = Field(None, description="Path of the Python for transformers.")
    vllm: str | None = Field(None, description="Path of the Python for vLLM.")


class Evaluation(Entry):
    """How models are scored; options of `python -m evaluation`."""

    backend: Backend = Field("hf", description="What runs the models: transformers or vLLM.")
    interpreters: Interpreters = Field(
        Interpreters(), description="Other environments, by backend; see evaluation.md."
    )
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]+)?)$")] = Field(
        "cpu", description="Where models are scored and trained merges learn."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type in which models are scored."
    )
    engine: Literal["sqlite", "postgres"] = Field(
        "sqlite", description="What runs the queries of SQL tasks."
    )
    tensor_parallel: Count = Field(1, description="vLLM: GPUs over which a model is divided.")
    data_parallel: Count = Field(1, description="vLLM: copies of the model that share the items.")
    limit: Count | None = Field(None, description="Items of each task; all if absent.")
    test_items: Count = Field(200, description="Test items of each of the bottle's tasks.")
    dev_items: Count = Field(60, description="Dev items of each task, for tuning and searches.")
    batch_size: Count = Field(64, description="Items that the hf backend reads at a time.")
    store: bool = Field(
        True,
        description="Whether finished tasks are kept in `results/NAME/store`, so that a stopped "
        "evaluation resumes.",
    )

    def scoring(self, *names: str) -> dict[str, Any]:
        """Return the named settings that have a value."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def interpreter(self, backend: str) -> Path | None:
        """Return the Python of a backend's environment; None for the one that is running.

        A relative path is relative to the project's folder.
        """
        given = getattr(self.interpreters, backend)
        return None if given is None else ROOT / given

    def check(self) -> None:
        """Refuse interpreters that cannot be run.

        Raises:
            UserError: One line with the path and a remedy.
        """
        for backend in self.interpreters.model_dump():
            python = self.interpreter(backend)
            if python and not os.access(python, os.X_OK):
                raise UserError(
                    f"evaluation.interpreters.{backend}: {python} is not there; install that "
                    "environment (docs/evaluation.md), or leave the key out"
                )


class Tuning(Entry):
    """The equal effort that every tunable method gets."""

    evaluations: Count = Field(6, description="K: candidates of every tuned row.")


class Gate(Entry):
    """The test that every expert has to pass before anything is merged."""

    standard_errors: NotNegative = Field(
        2.0, description="An expert must beat the base by more, on the average of its domain."
    )
    stop: bool = Field(True, description="Whether a failed gate stops the run or is only noted.")


class CalibrationRows(Entry):
    """The data that data-driven merges learn from."""

    rows: Count = Field(2000, description="Rows of each expert.")
    statistics: Count | None = Field(
        None, description="The first so many rows are those that statistics see; all if absent."
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        2048, description="Most tokens of a row; a longer one is cut at its end."
    )
