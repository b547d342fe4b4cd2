"""Asks one model after another the suites' items, with lm-eval's tasks, requests and filters."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Read when the libraries are imported: nothing here ever asks a server.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import lm_eval
import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.loading import load_tokenizer
from checkpoints.reading import Checkpoint
from common import numerics, sources
from common.errors import UserError
from common.files import sha256_file, sha256_json
from common.manifest import NAME, check_recorded
from evaluation.backends import check_max_length, class_of, open_backend
from evaluation.backends.base import Backend
from evaluation.backends.tokenisation import Rule
from evaluation.bar import Bar
from evaluation.chat import chat_settings
from evaluation.definitions import bind, load_definition
from evaluation.items import PROCESSORS, Context, Item, Scorer, suite_means
from evaluation.lm_task import LocalTask, read_items, read_pool, read_stand_ins
from evaluation.own_data import own_tasks
from evaluation.sources import evaluation_files
from evaluation.store import Store
from evaluation.suites import Task, items_file, pool_file, select

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_ROW_FAULTS = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
_CONFIGURATION_FILES = ("config.json", "generation_config.json")


def _hash(folder: Path | str, names: Sequence[str]) -> str:
    paths = (Path(folder) / name for name in names)
    return sha256_json({path.name: sha256_file(path) for path in paths if path.is_file()})


def _describe(task: Task, folder: Path) -> list[Any]:
    """Say what a user's own task asks and how it is scored."""
    files = [path.name for path in sorted(folder.iterdir()) if path.name != NAME]
    about = [task.kind, task.metric, task.shots, task.max_tokens, task.delimiter]
    return [*about, _hash(folder, files)]


def tokenizer_hash(folder: Path | str) -> str:
    """Hash the files of a tokenizer."""
    return _hash(folder, _TOKENIZER_FILES)


def _load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    for name in _TOKENIZER_FILES:
        if (path := Path(folder) / name).is_file():
            check_recorded(path)
    return load_tokenizer(folder, ", or name its folder (--tokenizer DIR)")


class Harness:
    """Evaluates models of one tokenizer on a fixed choice of tasks.

    Items, requests and encodings are prepared once, so that the second model costs only its
    forward passes.

    Args:
        data: Folder with `<split>/<suite>/<task>.jsonl` and `databases/`.
        suites: Names of suites or of single tasks; see `evaluation.suites.select`.
        split: dev or test.
        tokenizer: Folder of the tokenizer that all models share (a model's folder will do).
        batch_size: Prompts a forward pass.
        seed: Recorded, and set before each evaluation; greedy scoring draws nothing.
        fidelity, prompt: As `evaluation.suites.select`.
        limit: Items a task, after its shuffle; None takes all.
        max_length: The most tokens that a model reads at once; None for what it was made for.
        chat_template: Whether prompts are written with the tokenizer's chat template, examples as
            turns before the item.
        backend: hf or vllm.
        dtype, device: Of the models that `evaluate_folder` loads.
        parallel: ``tensor_parallel`` and ``data_parallel`` of the vllm backend, where above 1.
        engine, postgres: As `Context`.
        store: Keeps the finished tasks of `evaluate_folder`; None keeps none.
        bar: Shows the progress; None shows none.
        chosen: Chooses among a task's items, from its name and rows; None takes all. Not for use
            with a store, which would confuse the choices.

    Raises:
        UserError: No such suite, a task has no items, or the tokenizer cannot be read.
    """

    def __init__(
        self,
        data: Path | str,
        suites: Sequence[str],
        split: str,
        tokenizer: Path | str,
        batch_size: int = 64,
        seed: int = 0,
        *,
        fidelity: str | None = None,
        prompt: str | None = None,
        limit: int | None = None,
        max_length: int | None = None,
        chat_template: bool = False,
        backend: str = "hf",
        dtype: str = "float32",
        device: str = "cpu",
        parallel: Mapping[str, int] | None = None,
        engine: str = "sqlite",
        postgres: Path | None = None,
        store: Store | None = None,
        bar: Bar | None = None,
        chosen: Callable[[str, list[Item]], list[Item]] | None = None,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.data = Path(data)
        self.split = split
        self.seed = seed
        self.backend = backend
        self.tasks = select(suites, fidelity, prompt, own_tasks(self.data))
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        self._tokenizer = _load_tokenizer(tokenizer)
        self._settings: dict[str, Any] = {
            "dtype": dtype,
            "limit": limit,
            "max_length": max_length,
            "engine": engine,
        }
        if chat_template:
            self._settings["chat_template"] = True
        self._asking = chat_settings(self._tokenizer, tokenizer) if chat_template else {}
        self._device = device
        self._parallel = dict(parallel or {})
        self._batch_size = batch_size
        self._store = store
        self._chosen = chosen
        self.bar = bar
        self._lm: Backend | None = None
        self._resources: dict[str, Any] = {}
        self._data_hashes: dict[str, list[str]] = {}
        self._lm_tasks: dict[str, LocalTask] = {}
        self._scorers: dict[str, Scorer] = {}
        self._stand_ins: dict[str, dict[str, str]] = {}
        # Wrong rows are refused here, before a model is loaded.
        for task in self.tasks:
            context = Context(task, self._tokenizer, self.data, engine, postgres, self._resources)
            self._prepare(task, context, limit)

    def _prepare(self, task: Task, context: Context, limit: int | None) -> None:
        if task.folder is not None:
            check_recorded(task.folder)
        definition = {"process_results": PROCESSORS[task.kind]} | load_definition(task)
        definition = bind(definition, context=context, tokenizer=self._tokenizer)
        columns = definition.get("metadata", {}).get("columns", ())
        if self._store is not None:
            # Now, for the files may be others when a later model is asked what is read here.
            self._data_hashes[task.name] = self._hash_data(task)
        rows = read_items(self.data, self.split, task, columns)
        rows = rows if self._chosen is None else self._chosen(task.name, rows)
        pool = read_pool(self.data, self.split, task, definition.get("num_fewshot", 0))
        try:
            self._lm_tasks[task.name] = LocalTask(definition, rows, pool, limit)
            self._lm_tasks[task.name].check_golds()
        except _ROW_FAULTS as error:
            raise self._unusable(task, error) from error
        self._scorers[task.name] = Scorer(task, definition)
        self._stand_ins[task.name] = read_stand_ins(self.data, self.split, task)

    def _hash_data(self, task: Task) -> list[str]:
        files = [items_file(self.data, self.split, task), pool_file(self.data, self.split, task)]
        if task.kind == "sql":
            files += sorted((self.data / "databases").rglob("*"))
        return [sha256_file(path) for path in files if path.is_file()]

    def _unusable(self, task: Task, error: Exception) -> UserError:
        """Say that a suite's functions cannot make requests of a task's rows."""
        return UserError(
            f"{items_file(self.data, self.split, task)}: task {task.name} cannot ask what a row "
            f"holds ({type(error).__name__}: {error}); {task.remedy(self.data)}"
        )

    def inputs(self) -> dict[str, Path]:
        """Return the files that the tasks were read from, by the task's name."""
        files = {task.name: items_file(self.data, self.split, task) for task in self.tasks}
        pools = {task.name: pool_file(self.data, self.split, task) for task in self.tasks}
        drawn = {f"{name}.fewshot": path for name, path in pools.items() if path.is_file()}
        return files | drawn

    def contents(self) -> dict[str, list[tuple[str, str, str]]]:
        """Return each task's items: id, prompt without its shots, right answer."""
        return {name: lm_task.contents() for name, lm_task in self._lm_tasks.items()}

    def close(self) -> None:
        """End the model, and what the tasks have opened, such as a database server."""
        if self._lm is not None:
            self._lm.close()
            self._lm = None
        for resource in self._resources.values():
            if hasattr(resource, "close"):
                resource.close()
        self._resources.clear()

    def evaluate(
        self, model: PreTrainedModel, name: str = "model", weights: str | None = None
    ) -> dict[str, Any]:
        """Score a model in memory; see `evaluate_with_items`.

        Returns:
            The content of scores.json.
        """
        return self.evaluate_with_items(model, name, weights)[0]

    def evaluate_with_items(
        self, model: PreTrainedModel, name: str = "model", weights: str | None = None
    ) -> tuple[dict[str, Any], list[Item]]:
        """Score a model in memory and keep every item's record.

        Args:
            model: A causal language model with the harness's tokenizer. For a search, overwrite
                its parameters and call again.
            name: Its name in results and messages.
            weights: The checkpoint's fingerprint, where it has one.

        Returns:
            The content of scores.json, and the records as `Scorer.record` describes them.

        Raises:
            UserError: The model's output is not finite; the message names the task.
        """
        return self._evaluate(model, name, weights, store=None)

    def evaluate_folder(self, folder: Path, name: str) -> tuple[dict[str, Any], list[Item]]:
        """Score a checkpoint, which is read only if the store lacks one of its tasks.

        Args:
            folder: A Hugging Face model folder.
            name: Its name in results and messages.

        Returns:
            As `evaluate_with_items`.

        Raises:
            UserError: The folder is not a model, or its output is not finite.
        """
        checkpoint = Checkpoint(folder)
        check_max_length(self._settings["max_length"], checkpoint.config, self.backend, name)
        return self._evaluate(checkpoint.path, name, checkpoint.fingerprint, self._store)

    def _evaluate(
        self, model: PreTrainedModel | Path, name: str, weights: str | None, store: Store | None
    ) -> tuple[dict[str, Any], list[Item]]:
        torch.manual_seed(self.seed)
        counted: dict[str, int] = {}
        entries, items = {}, []
        notes: dict[str, None] = {}
        served: Backend | None = None
        # One task after another: a score then does not depend on what else is asked, and a run
        # with a store that is killed loses only one.
        for task in self.tasks:
            key = {} if store is None else self._key(task, model, weights)
            done = None if store is None else store.get(key)
            if done is None:
                # Loading may take minutes, and the store may have every task.
                served = served or self._serve(model, name)
                done = self._run(task, served)
                if store is not None:
                    store.put(key, done)
            for kind, amount in done["counted"].items():
                counted[kind] = counted.get(kind, 0) + amount
            items += done["items"]
            entries[task.name] = self._scorers[task.name].summarise(done["items"])
            if cut := done.get("cut"):
                entries[task.name]["cut"] = cut
            notes |= dict.fromkeys(done.get("notes", ()))
            if stand_ins := self._stand_ins[task.name]:
                entries[task.name]["stand_in"] = stand_ins
        summary = {
            "model": name,
            "weights": weights,
            "split": self.split,
            "backend": self.backend,
            "dtype": served.dtype if served else self._settings["dtype"],
            "seed": self.seed,
            "lm_eval": lm_eval.__version__,
            "tasks": entries,
            "suites": suite_means(self.tasks, entries),
            "counted": counted,
        }
        extra = {k: self._settings.get(k) for k in ("limit", "max_length", "chat_template")}
        extra["notes"] = list(notes)
        return summary | {name: value for name, value in extra.items() if value}, items

    def _serve(self, model: PreTrainedModel | Path, name: str) -> Backend:
        dtype, device = self._settings["dtype"], self._device
        if self._lm is not None:
            if type(self._lm) is class_of(self.backend, model, dtype, device):
                self._lm.serve(model, name)
                return self._lm
            self._lm.close()
        self._lm = open_backend(
            self.backend,
            model,
            self._tokenizer,
            batch_size=self._batch_size,
            dtype=dtype,
            device=device,
            max_length=self._settings["max_length"],
            name=name,
            **self._parallel,
        )
        return self._lm

    def _run(self, task: Task, lm: Backend) -> dict[str, Any]:
        """Ask the model one task's items, as lm-eval's evaluator does."""
        lm_task, scorer = self._lm_tasks[task.name], self._scorers[task.name]
        lm.set_rule(Rule(task.how, task.bos))
        try:
            lm_task.build_all_requests(rank=0, world_size=1, **self._asking)
        except _ROW_FAULTS as error:
            raise self._unusable(task, error) from error
        by_kind: dict[str, list[Instance]] = {}
        for instance in lm_task.instances:
            asked = by_kind.setdefault(instance.request_type, [])
            asked += [instance] * (instance.repeats or 1)
        if self.bar is not None:
            self.bar.start(task.name, sum(map(len, by_kind.values())))
            lm.on_progress = self.bar.update
        before, cut = dict(lm.counted), lm.cut
        for kind, asked in by_kind.items():
            for instance, answer in zip(asked, getattr(lm, kind)(asked), strict=True):
                instance.resps.append(answer)
        counted = {kind: amount - before[kind] for kind, amount in lm.counted.items()}
        counted["flops"] = 2 * lm.parameters * counted["tokens"]
        items = [scorer.record(lm_task, *sample) for sample in lm_task.samples()]
        # Only where there is something to say: other results stay as they are.
        said = {"cut": lm.cut - cut, "notes": list(lm.notes)}
        return {"items": items, "counted": counted} | {k: v for k, v in said.items() if v}

    def _key(self, task: Task, folder: Path, weights: str | None) -> dict[str, Any]:
        """Say all that a task's answers depend on."""
        lm_task = self._lm_tasks[task.name]
        day = None
        if task.kind == "sql":
            # Some rows of the databases are relative to the day on which they are loaded.
            day = datetime.datetime.now(datetime.UTC).date().isoformat()
        # An own task's definition is no code of this project.
        own = {} if task.folder is None else {"own": _describe(task, task.folder)}
        return self._settings | {
            "weights": weights,
            "configuration": _hash(folder, _CONFIGURATION_FILES),
            "tokenizer": self.tokenizer_hash,
            "task": task.name,
            "version": lm_task.VERSION,
            "fidelity": task.fidelity,
            "prompt": task.prompt,
            "items": self._data_hashes[task.name],
            "definition": sources.version(
                evaluation_files([task], self.backend, self._settings["engine"])
            ),
            "day": day,
            "numerics": numerics.setting(),
            "decoding": lm_task.config.generation_kwargs,
            "backend": self.backend,
            "seed": self.seed,
            "lm_eval": lm_eval.__version__,
            **own,
        }
