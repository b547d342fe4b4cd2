"""Task definitions: lm-eval's YAML, completed by the suite's one Python file."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from common.errors import UserError
from evaluation.rows import AGGREGATIONS
from evaluation.suites import Task

# Keys of lm-eval's YAML that say where rows come from.
_SOURCES = {"dataset_path", "dataset_name", "dataset_kwargs", "training_split", "test_split"}
_SOURCES |= {"validation_split", "fewshot_split", "tag"}


@functools.cache
def _module(path: Path) -> ModuleType:
    loader = SourceFileLoader(f"own_task_{path.stem}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    loader.exec_module(module)
    return module


def _functions(task: Task, name: str = "functions") -> ModuleType | None:
    if task.folder is not None:
        path = task.folder / f"{name}.py"
        return _module(path) if path.is_file() else None
    return importlib.import_module(f"evaluation.tasks.{task.suite}.functions")


class _Loader(yaml.SafeLoader):
    """A safe loader that knows `!function functions.NAME`."""

    task: Task


def _function(loader: _Loader, node: yaml.Node) -> Any:
    module, _, name = str(node.value).partition(".")
    known = module == "functions" or loader.task.folder is not None
    found = getattr(_functions(loader.task, module), name, None) if known else None
    if found is None:
        raise UserError(
            f"{loader.name}: no function {node.value!r}; name one as functions.NAME and define it "
            "in functions.py next to this file"
        )
    return found


_Loader.add_constructor("!function", _function)


def _read(path: Path, task: Task) -> dict[str, Any]:
    with open(path, encoding="utf-8") as stream:
        loader = _Loader(stream)
        loader.task = task
        try:
            return loader.get_single_data()
        except yaml.YAMLError as error:
            problem = str(error).replace("\n", " ")
            raise UserError(f"{path}: not valid YAML ({problem}); correct the file") from None
        finally:
            loader.dispose()


def _plain(task: Task) -> dict[str, Any]:
    """Write the definition of a task whose rows hold prompt and answer under their usual names."""
    metric: dict[str, Any] = {"metric": task.metric, "higher_is_better": True}
    # Some metrics are of the table of gold and predicted choices, the others means over the items.
    metric["aggregation"] = task.metric if task.metric in AGGREGATIONS else "mean"
    definition: dict[str, Any] = {
        "test_split": "items",
        "doc_to_text": "prompt",
        "target_delimiter": task.delimiter,
        "metric_list": [metric],
        "metadata": {"version": 1.0},
    }
    if task.shots:
        definition["num_fewshot"] = task.shots
    if task.kind == "multiple_choice":
        choice = {"doc_to_choice": "choices", "doc_to_target": "gold"}
        return definition | choice | {"output_type": "multiple_choice"}
    decoding = {"until": ["\n"], "max_gen_toks": task.max_tokens, "do_sample": False}
    target = "query" if task.kind == "sql" else "target"
    return definition | {
        "output_type": "generate_until",
        "doc_to_target": target,
        "generation_kwargs": decoding,
    }


def _merge(definition: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(definition)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merged[key] | value if both else value
    return merged


def load_definition(task: Task) -> dict[str, Any]:
    """Read a task's lm-eval definition, functions in the place of their names.

    Where a suite has variants, `definition(task, prompt, fidelity)` of its `functions.py` says what
    they change: mappings key by key, else entire values. A task without YAML has that of its kind.

    Raises:
        UserError: The file is not valid YAML or names an unknown function.
    """
    definition = _read(task.definition, task) if task.definition.is_file() else _plain(task)
    if task.folder is not None:
        # Rows of any columns; where they come from was decided when they were read.
        definition = {key: value for key, value in definition.items() if key not in _SOURCES}
        about = {"columns": ["id"]} if task.definition.is_file() else {}
        definition["metadata"] = about | definition.get("metadata", {})
    if task.fidelity is not None or task.prompt is not None:
        module = importlib.import_module(f"evaluation.tasks.{task.suite}.functions")
        definition = _merge(definition, module.definition(task.id, task.prompt, task.fidelity))
    return definition | {"task": task.lm_eval_name}


def bind(value: Any, **given: Any) -> Any:
    """Give functions what they take by the name of a parameter, in mappings at any depth.

    Args:
        value: A definition, a part of one, or a function.
        given: By parameter's name, what is given to every function that has the parameter.
    """
    if isinstance(value, Mapping):
        return {key: bind(part, **given) for key, part in value.items()}
    taken = given.keys() & _parameters(value) if callable(value) else set()
    if not taken:
        return value

    # A plain function, because lm-eval makes deep copies, which stop at functions.
    def bound(*arguments: Any) -> Any:
        return value(*arguments, **{name: given[name] for name in taken})

    return bound


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        return set()
