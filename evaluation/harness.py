"""Runs lm-eval's evaluator over the suites' items for one model after another."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Read when the libraries are imported: nothing here ever asks a server.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import lm_eval
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_jsonl
from evaluation import scores, sql
from evaluation.backend import BottleLM
from evaluation.suites import Task, read_yaml, select

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COLUMNS = {
    "multiple_choice": {"id", "prompt", "choices", "gold"},
    "generation": {"id", "prompt", "target"},
    "sql": {"id", "prompt", "query", "database"},
}


class _Rows(list):
    """Items as lm-eval reads them, without the datasets library's files."""

    @property
    def features(self) -> dict[str, Any]:
        return self[0]


class _LocalTask(ConfigurableTask):
    """A task that builds its requests once, for all models."""

    _instances = None

    def build_all_requests(self, **settings: Any) -> None:
        if self._instances is None:
            # lm-eval draws a progress bar here for work of milliseconds.
            with contextlib.redirect_stderr(io.StringIO()):
                super().build_all_requests(**settings)
        for instance in self._instances:
            instance.resps = []
            instance.filtered_resps = {}


def items_file(data: Path, split: str, task: Task) -> Path:
    """Return where a task's items lie."""
    return data / split / task.suite / f"{task.id}.jsonl"


def read_items(data: Path, split: str, task: Task) -> list[dict[str, Any]]:
    """Read a task's items.

    Args:
        data: Folder made by `python -m bottle data`, or of the same shape.
        split: dev or test.
        task: The task.

    Returns:
        The rows.

    Raises:
        UserError: The file is missing, empty, or a row lacks a column.
    """
    path = items_file(data, split, task)
    rows = read_jsonl(path) if path.is_file() else []
    if not rows:
        problem = "is empty" if path.is_file() else "does not exist"
        raise UserError(
            f"task {task.name} has no items in {path}, which {problem}; make the data again "
            "(python -m bottle data), or leave the suite out"
        )
    for number, row in enumerate(rows, 1):
        missing = _COLUMNS[task.kind] - row.keys()
        if missing:
            raise UserError(
                f"{path}, line {number}: no {sorted(missing)[0]!r}; make the data again"
            )
        if task.kind == "multiple_choice" and not 0 <= row["gold"] < len(row["choices"]):
            raise UserError(f"{path}, line {number}: no choice has the number in 'gold'")
    return rows


def load_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a model for evaluation.

    Args:
        folder: A Hugging Face model folder.
        dtype: float32, bfloat16 or float16.
        device: A torch device.

    Returns:
        The model.

    Raises:
        UserError: The folder is not a model, or a shard is missing or truncated.
    """
    Checkpoint(folder)
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], local_files_only=True)
    return model.to(device).eval()


class Harness:
    """Evaluates models of one tokenizer on a fixed choice of tasks.

    Items, requests and encodings are prepared once, so that the second model costs only its
    forward passes.

    Args:
        data: Folder with `<split>/<suite>/<task>.jsonl` and `databases/`.
        suites: Names of suites or of single tasks (`suite/task`).
        split: dev or test.
        tokenizer: Folder of the tokenizer that all models share (a model's folder will do).
        batch_size: Prompts a forward pass.
        seed: Recorded, and set before each evaluation; greedy scoring draws nothing.

    Raises:
        UserError: No such suite, or a task has no items.
    """

    def __init__(
        self,
        data: Path | str,
        suites: Sequence[str],
        split: str,
        tokenizer: Path | str,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.data = Path(data)
        self.split = split
        self.seed = seed
        self.tasks = select(suites)
        self._items = {task.name: read_items(self.data, split, task) for task in self.tasks}
        self._batch_size = batch_size
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            tokenizer, local_files_only=True
        )
        self._judge = sql.Judge(self.data / "databases")
        self._lm: BottleLM | None = None
        self._lm_tasks = {task.lm_eval_name: self._lm_task(task) for task in self.tasks}

    def _scorer(self, task: Task) -> Callable[[dict, list[str]], dict[str, float]] | None:
        """Choose the function that scores an item's generated text, None for lm-eval's own."""

        def words(text: str) -> list[int]:
            return self._tokenizer.encode(text.strip(), add_special_tokens=False)

        def execution(doc: dict, results: list[str]) -> dict[str, float]:
            verdict = self._judge.judge(results[0], doc["query"], doc["database"])
            return {task.metric: float(verdict.correct)}

        def compare(doc: dict, results: list[str]) -> dict[str, float]:
            answer, target = results[0], doc["target"]
            if task.metric == "rouge2":
                return {task.metric: scores.rouge2(words(answer), words(target))}
            return {task.metric: getattr(scores, task.metric)(answer, target)}

        return {"multiple_choice": None, "generation": compare, "sql": execution}[task.kind]

    def _lm_task(self, task: Task) -> ConfigurableTask:
        items = {"items": _Rows(self._items[task.name])}
        definition = read_yaml(task.definition) | {"custom_dataset": lambda **_: items}
        scorer = self._scorer(task)
        if scorer is not None:
            definition["process_results"] = scorer
        return _LocalTask(config=definition)

    def evaluate(
        self, model: PreTrainedModel, name: str = "model", weights: str | None = None
    ) -> dict[str, Any]:
        """Score a model.

        Args:
            model: A causal language model with the harness's tokenizer. For a search, overwrite
                its parameters and call again.
            name: What results and messages call it.
            weights: The checkpoint's fingerprint, where it has one.

        Returns:
            The content of scores.json.

        Raises:
            UserError: The model's output is not finite; the message names the task.
        """
        return self.evaluate_with_items(model, name, weights)[0]

    def evaluate_with_items(
        self, model: PreTrainedModel, name: str = "model", weights: str | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Score a model and keep every item's answer; see `evaluate`.

        Returns:
            The content of scores.json, and per item: task, id, score, answer, gold and, for
            multiple choice, the choices' log-likelihoods.
        """
        torch.manual_seed(self.seed)
        if self._lm is None:
            self._lm = BottleLM(model, self._tokenizer, self._batch_size)
        self._lm.serve(model, name)
        samples = lm_eval_evaluate(
            self._lm, {"tasks": self._lm_tasks, "groups": {}}, bootstrap_iters=0
        )["samples"]
        items = [
            self._item(task, sample) for task in self.tasks for sample in samples[task.lm_eval_name]
        ]
        return self._summary(model, name, weights, items), items

    def _item(self, task: Task, sample: dict[str, Any]) -> dict[str, Any]:
        doc = sample["doc"]
        item = {"task": task.name, "id": doc["id"], "score": float(sample[task.metric])}
        if task.kind == "multiple_choice":
            values = [round(value, 6) for value, _ in sample["filtered_resps"]]
            answer = max(range(len(values)), key=lambda i: sample["filtered_resps"][i][0])
            return item | {"answer": answer, "gold": doc["gold"], "loglikelihoods": values}
        answer = sample["filtered_resps"][0]
        if task.kind == "generation":
            return item | {"answer": answer, "gold": doc["target"]}
        verdict = self._judge.judge(answer, doc["query"], doc["database"])
        about = {key: doc[key] for key in ("category", "database") if key in doc}
        return item | about | {"answer": answer, "gold": doc["query"], "outcome": verdict.outcome}

    def _summary(
        self, model: PreTrainedModel, name: str, weights: str | None, items: list[dict[str, Any]]
    ) -> dict[str, Any]:
        tasks = {}
        for task in self.tasks:
            values = [item["score"] for item in items if item["task"] == task.name]
            value, stderr = scores.mean_and_stderr(values)
            tasks[task.name] = {
                "metric": task.metric,
                "value": value,
                "stderr": stderr,
                "items": len(values),
                "chance": task.chance,
            }
        counted = self._lm.counted
        return {
            "model": name,
            "weights": weights,
            "split": self.split,
            "backend": "hf",
            "dtype": str(model.dtype).removeprefix("torch."),
            "seed": self.seed,
            "lm_eval": lm_eval.__version__,
            "tasks": tasks,
            "counted": counted | {"flops": 2 * model.num_parameters() * counted["tokens"]},
        }
