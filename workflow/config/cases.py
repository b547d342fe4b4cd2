"""Cases: the models that are merged, what they are evaluated on, and what tables show of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from common.errors import UserError
from evaluation.suites import Task, load_suites, select
from workflow.config.entry import (
    Backend,
    Count,
    Distinct,
    Entry,
    Name,
    NotNegative,
    Positive,
    Seed,
    Some,
    TaskName,
    known,
)

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Train(Entry):
    """How the bottle trains a model; options of `python -m bottle train`."""

    steps: Count = Field(description="Optimizer steps.")
    learning_rate: Positive = Field(description="Peak learning rate of the linear layers.")
    embedding_learning_rate: NotNegative | None = Field(
        None, description="Peak learning rate of embeddings and norms; 0 freezes them."
    )
    prompt_weight: NotNegative | None = Field(
        None, description="Weight of a prompt's token in the loss, where an answer's is 1."
    )
    weight_decay: NotNegative | None = Field(None, description="AdamW's weight decay.")
    base_decay: NotNegative | None = Field(
        None,
        description="Decay towards the base's weights (L2-SP), decoupled as AdamW's decay to 0.",
    )
    batch_size: Count | None = Field(None, description="Texts in a step.")


class Shape(Entry):
    """Architecture and sizes of the models that the bottle trains for a case."""

    architecture: Literal["llama", "mistral"] = Field(description="The transformer's architecture.")
    hidden_size: Annotated[int, Field(ge=32)] = Field(description="Width of the hidden states.")
    layers: Count = Field(description="Number of layers.")
    heads: Count = Field(description="Number of attention heads.")
    kv_heads: Count = Field(description="Number of heads of keys and values.")
    intermediate_size: Count = Field(description="Width of the MLP.")

    @property
    def parameters(self) -> float:
        """Number of parameters without the embeddings, whose vocabulary comes with the data."""
        width = self.hidden_size
        attention = 2 * width * width + 2 * width * (width // self.heads) * self.kv_heads
        return self.layers * (attention + 3 * width * self.intermediate_size)


class Size(Entry):
    """Size of models that the bottle does not train; what steps ask of a machine depends on it."""

    parameters: Positive = Field(description="Number of parameters of one model.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Type in which the weights are stored."
    )


class CalibrationData(Entry):
    """A published data set and its columns; options of `python -m paper calibration`."""

    hub: Name = Field(description="The data set's name in the table `hub.table`.")
    prompt: list[str] = Field([], description="Columns of the prompt; none for plain text.")
    answer: Some[str] = Field(description="Columns of the answer.")
    joiner: str = Field("\n\n", description="Text between two columns.")
    template: Literal["alpaca", "plain"] = Field(
        "alpaca", description="How prompt and answer become one text."
    )
    eos: bool = Field(True, description="Whether an end-of-sequence token follows the answer.")

    def options(self) -> dict[str, str]:
        """Return the options of `python -m paper calibration`, without that for `eos`."""
        options = {"answer": ",".join(self.answer), "prompt": ",".join(self.prompt)}
        options |= {"joiner": self.joiner, "template": self.template}
        return {name: value for name, value in options.items() if value or name != "prompt"}


class Finetune(Entry):
    """How the cask fine-tunes an expert; options of `python -m cask train`."""

    tasks: Some[TaskName] | None = Field(
        None, description="Tasks whose training rows it learns; its `domain` if absent."
    )
    steps: Count = Field(description="Optimizer steps.")
    batch_size: Count = Field(16, description="Rows in a step.")
    learning_rate: Positive = Field(description="Peak learning rate.")
    rank: Annotated[int, Field(ge=0)] = Field(
        16, description="Rank of the LoRA adapter; 0 trains all weights of the linear layers."
    )
    max_tokens: Annotated[int, Field(ge=2)] = Field(
        512, description="Rows of more tokens are left out."
    )

    def options(self) -> dict[str, Any]:
        """Return the options of `python -m cask train`."""
        return {name: value for name, value in self.model_dump().items() if name != "tasks"}


class Parent(Entry):
    """A model that is merged: trained by the bottle, fetched (`hub`), or of the cask."""

    label: str = Field(description="Name in tables and figures.")
    train: Train | None = Field(None, description="How the bottle trains it.")
    hub: Name | None = Field(None, description="Its name in the table `hub.table`.")
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = Field(
        None, description="A base's name in `python -m cask base --list`."
    )
    backend: Backend | None = Field(
        None, description="What evaluates it, if not `evaluation.backend`."
    )


class Expert(Parent):
    """A model that was fine-tuned from the base."""

    domain: Some[TaskName] = Field(
        description="Tasks that it was trained for; the gate requires it to beat the base there."
    )
    finetune: Finetune | None = Field(None, description="How the cask trains it from its base.")
    base_seed: Seed | None = Field(
        None,
        description="The bottle fine-tunes it from another base than the case's: made by the same "
        "recipe on the same data, with initial weights and order of data from this seed.",
    )
    calibration: CalibrationData | None = Field(
        None, description="Published data from which its calibration rows are drawn."
    )


class Column(Entry):
    """A column of a case's table: the mean over its tasks."""

    label: str = Field(description="Heading of the column.")
    tasks: Some[TaskName] = Field(description="Tasks, as suite/task.")


def _tasks_of(columns: Sequence[Column]) -> list[str]:
    """List the tasks of columns, each once."""
    return list(dict.fromkeys(task for column in columns for task in column.tasks))


class Case(Entry):
    """A case study: a base, its experts, and the columns of their table."""

    table: Name = Field(description="Name of the table's files and of its target in Snakemake.")
    title: str = Field(description="Title of the table.")
    world: Literal["case1", "case2"] | None = Field(
        None, description="Which of the bottle's worlds of text the models are trained on."
    )
    drift: Literal["far", "near"] = Field(
        "far",
        description="How far the bottle's experts drift: `far` from a base that knows nothing, or "
        "`near` a competent one.",
    )
    model: Shape | None = Field(None, description="Shape of the models that the bottle trains.")
    size: Size | None = Field(None, description="Size of models that the bottle does not train.")
    vocabulary: Literal["refuse", "base", "union", "crop-to-base"] = Field(
        "refuse",
        description="What is done with an expert whose vocabulary is not the base's; see "
        "[merging.md](merging.md).",
    )
    base: Parent = Field(description="The model that the experts were fine-tuned from.")
    experts: Annotated[dict[Name, Expert], Field(min_length=1)] = Field(
        description="The models that are merged, by name."
    )
    columns: Some[Column] = Field(description="Columns of the table; the average is their mean.")
    beside: list[Column] = Field([], description="Columns after the average, not part of it.")
    dev_tasks: Distinct[TaskName] | None = Field(
        None,
        description="Tasks whose dev items guide tuning and searches; all of `columns` if absent.",
    )
    notes: list[str] = Field([], description="Sentences under the table.")

    @property
    def fetched(self) -> bool:
        """Whether the models are published checkpoints; otherwise the bottle trains them."""
        return self.base.hub is not None

    @property
    def in_cask(self) -> bool:
        """Whether the base comes from a package index, and the experts are trained from it."""
        return self.base.package is not None

    @property
    def parameters(self) -> float:
        """Number of parameters of one model: given as `size`, or from the shape."""
        size = self.size or self.model
        return size.parameters if size else 0.0

    @property
    def gigabytes(self) -> float:
        """Size of one model's weights as stored, in GB of 10^9 bytes."""
        return self.parameters * _BYTES[self.size.dtype if self.size else "float32"] / 1e9

    @property
    def parents(self) -> dict[str, Parent]:
        """The base and the experts, by name."""
        return {"base": self.base, **self.experts}

    @property
    def tasks(self) -> list[str]:
        """All tasks (``suite/task``), in the order of the columns."""
        return _tasks_of([*self.columns, *self.beside])

    @property
    def suites(self) -> list[str]:
        """What is evaluated, in the order of the columns: suites, and tasks of incomplete ones."""
        found = []
        for suite in dict.fromkeys(task.split("/")[0] for task in self.tasks):
            own = [task for task in self.tasks if task.split("/")[0] == suite]
            shipped = suite.partition(":")[0] in load_suites()
            complete = shipped and {task.name for task in select([suite])} <= set(own)
            found += [suite] if complete else own
        return found

    def evaluated(self, split: str) -> list[str]:
        """Return the suites and tasks that a model is evaluated on.

        Args:
            split: `test` takes all of the tables'. `dev` of a cask takes those that the gate or a
                search reads: some benchmarks have no dev items, and an item takes long.
        """
        if split == "test" or not self.in_cask:
            return self.suites
        read = {task for expert in self.experts.values() for task in expert.domain}
        return [task for task in self.tasks if task in read or task in self.searched_tasks]

    @property
    def taught(self) -> dict[str, list[str]]:
        """The tasks that the cask trains each expert on."""
        return {
            name: expert.finetune.tasks or expert.domain
            for name, expert in self.experts.items()
            if expert.finetune is not None
        }

    @property
    def most_rows(self) -> int:
        """Rows that the cask's longest training sees: so many are drawn for each expert."""
        trained = [expert.finetune for expert in self.experts.values() if expert.finetune]
        return max((entry.steps * entry.batch_size for entry in trained), default=0)

    @property
    def searched_columns(self) -> list[list[str]]:
        """What guides a search: by column of the average, its tasks that `dev_tasks` names."""
        columns = [
            [task for task in column.tasks if self.dev_tasks is None or task in self.dev_tasks]
            for column in self.columns
        ]
        return [tasks for tasks in columns if tasks]

    @property
    def searched_tasks(self) -> list[str]:
        """The tasks whose dev items guide searches, each once."""
        return self.dev_tasks or _tasks_of(self.columns)

    def _check_items(self, where: str, tasks: Sequence[Task]) -> None:
        """Refuse tasks of which the case's data hold no items."""
        for task in tasks:
            has_items = task.maker == "benchmark" if self.fetched else task.world == self.world
            if task.maker != "own" and not (has_items or self.in_cask):
                there = "benchmarks" if self.fetched else f"the bottle's tasks of {self.world}"
                raise UserError(
                    f"{where}: {task.name} has no items here; the case has {there} and your own "
                    "under 'tasks'"
                )

    def check(self, where: str, own: Mapping[str, Task]) -> None:
        """Refuse tasks that do not exist, have no items or are in no column.

        Args:
            where: The place in the configuration, for the message of a `UserError`.
            own: The user's own tasks, by name.
        """
        domains = [task for expert in self.experts.values() for task in expert.domain]
        taught = [task for tasks in self.taught.values() for task in tasks]
        try:
            tasks = select([*self.tasks, *domains, *taught], own=own)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self._check_items(where, tasks)
        columns = "the case's columns (with 'extends', your list replaces all columns)"
        for expert, entry in self.experts.items():
            if entry.base_seed is not None and self.world is None:
                raise UserError(
                    f"{where}.experts.{expert}: base_seed is for experts that the bottle trains; "
                    "leave it out"
                )
            for task in entry.domain:
                known(task, self.tasks, f"{where}.experts.{expert}", "task", columns)
        averaged = _tasks_of(self.columns)
        for task in self.dev_tasks or ():
            known(task, averaged, f"{where}.dev_tasks", "task", columns)
        if "base" in self.experts:
            raise UserError(f"{where}.experts: no expert can be called 'base'")


class World(Case):
    """A case as it is run: with the seed from which its data, base and experts are made."""

    of: str  # name of the case in the configuration; a study repeats it under another name
    seed: Seed  # the seed of everything that is drawn

    @classmethod
    def repeat(cls, case: Case, of: str, seed: int) -> World:
        """Return a case under a seed; see the class for the arguments."""
        return cls.model_construct(**dict(case), of=of, seed=seed)
