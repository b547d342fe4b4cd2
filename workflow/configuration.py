"""The experiment's configuration: read, checked whole before anything runs, defaults filled in.

Light on purpose: the Snakefile imports this at every parse, so torch stays out.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from common.errors import UserError, nearest
from evaluation.own_data import known
from evaluation.suites import Task, load_suites, select
from merges.engine import registry
from search.parameters import check_method
from studies import rooms
from workflow import hub_cases as published

SCHEMA = Path(__file__).with_name("schemas") / "config.schema.yaml"
SEARCHES = published.SEARCHES
DATA_FLOW = ("repeats", "max_depth", "embedding_from", "scales")  # of a search in data-flow space


def _filling_defaults(validator: type) -> type:
    """Extend a validator so that it writes the schema's defaults into what it checks."""
    check = validator.VALIDATORS["properties"]

    def properties(
        self: Any, subschemas: Mapping, instance: Any, schema: Mapping
    ) -> Iterator[jsonschema.ValidationError]:
        if isinstance(instance, dict):
            for name, subschema in subschemas.items():
                if "default" in subschema:
                    instance.setdefault(name, copy.deepcopy(subschema["default"]))
        yield from check(self, subschemas, instance, schema)

    return jsonschema.validators.extend(validator, {"properties": properties})


_VALIDATOR = _filling_defaults(jsonschema.Draft202012Validator)


def _explain(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the top level"
    if error.validator == "additionalProperties" and error.schema.get("properties"):
        valid = error.schema["properties"]
        unknown = next(name for name in error.instance if name not in valid)
        return f"unknown key {unknown!r} at {where}{nearest(unknown, valid)}"
    if error.validator == "required":
        lacking = next(name for name in error.validator_value if name not in error.instance)
        return f"{where} lacks the key {lacking!r}"
    return f"{where}: {error.message}"


def resolve(config: Mapping[str, Any], source: str = "config.yaml") -> dict[str, Any]:
    """Check a configuration and fill in its defaults.

    Args:
        config: The configuration as read.
        source: The file it came from, for messages.

    Returns:
        A new configuration with every default filled in, the methods' parameters included.

    Raises:
        UserError: Anything is unknown, missing or out of range; one line with the place and,
            where there is one, the nearest valid name.
    """
    config = copy.deepcopy(dict(config))
    try:
        error = jsonschema.exceptions.best_match(
            _VALIDATOR(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))).iter_errors(config)
        )
        if error is not None:
            raise UserError(_explain(error))
        own = known(config["tasks"], with_rows="scores_from" not in config)
        for case in config["cases"]:
            _check_case(config, case, own)
        for row in config["methods"]:
            _check_row(config, row)
        if "ablation" in config:
            _check_ablation(config)
        _check_interpreters(config)
        published.check(config, SCHEMA.parents[2])
        rooms.check(config)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return config


def load(path: Path | str) -> dict[str, Any]:
    """Read, check and resolve a configuration file; see `resolve`."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration; correct the path") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a configuration (a mapping of keys is expected)")
    return resolve(config, str(path))


def tasks_of(case: Mapping[str, Any]) -> list[str]:
    """Return all of a case's tasks (``suite/task``), in the order of its columns."""
    columns = [*case["columns"], *case["beside"]]
    return list(dict.fromkeys(task for column in columns for task in column["tasks"]))


def suites_of(case: Mapping[str, Any]) -> list[str]:
    """Return what is evaluated in a case, in the order of its columns.

    Args:
        case: A case of the configuration.

    Returns:
        Suites; single tasks of a suite of which the case has no others, and the user's own.
    """
    tasks = tasks_of(case)
    found = []
    for suite in dict.fromkeys(task.split("/")[0] for task in tasks):
        own = [task for task in tasks if task.split("/")[0] == suite]
        shipped = suite.split(":")[0] in load_suites()
        whole = shipped and {task.name for task in select([suite])} <= set(own)
        found += [suite] if whole else own
    return found


def searched_columns(case: Mapping[str, Any]) -> list[list[str]]:
    """Return what guides a search: the tasks of each column of the average that have a say in it.

    Args:
        case: A case of the resolved configuration.

    Returns:
        A list of tasks for each column that is left.
    """
    guiding = case.get("dev_tasks")
    columns = [
        [task for task in column["tasks"] if guiding is None or task in guiding]
        for column in case["columns"]
    ]
    return [tasks for tasks in columns if tasks]


def rows_of(config: Mapping[str, Any], case: str) -> list[str]:
    """Return the method rows of a case, in the order of the configuration."""
    return [row for row, entry in config["methods"].items() if case in entry.get("cases", [case])]


def backend_of(config: Mapping[str, Any], case: Mapping[str, Any], model: str) -> str:
    """Return the backend that evaluates a model: its own, else the experiment's.

    Args:
        config: The resolved configuration.
        case: The entry of the model's case.
        model: base, an expert's name or a row's.
    """
    entries = {**config["methods"], **case["experts"], "base": case["base"]}
    return entries[model].get("backend", config["evaluation"]["backend"])


def interpreter_of(config: Mapping[str, Any], backend: str) -> Path | None:
    """Return the Python of a backend's environment; None for the one that is at work.

    A relative path is sought from the project's folder.
    """
    given = config["evaluation"]["interpreters"].get(backend)
    return None if given is None else SCHEMA.parents[2] / given


def _check_interpreters(config: Mapping[str, Any]) -> None:
    if "scores_from" in config:  # nothing is evaluated
        return
    for backend in config["evaluation"]["interpreters"]:
        python = interpreter_of(config, backend)
        if not os.access(python, os.X_OK):
            raise UserError(
                f"evaluation.interpreters.{backend}: {python} is not there; install that "
                "environment (docs/evaluation.md), or leave the key out"
            )


def _check_items(case: Mapping[str, Any], name: str, tasks: Sequence[Task]) -> None:
    """Refuse tasks of which a case's data hold no items."""
    for task in tasks:
        where = f"cases.{name}: {task.name} has no items here"
        if task.maker == "own":
            continue
        if published.is_published(case):
            if task.maker != "benchmark":
                raise UserError(f"{where}; a case of the hub has benchmarks and tasks of your own")
        elif task.world != case.get("world"):
            raise UserError(
                f"{where}; name a task of the bottle's {case['world']}, or one under 'tasks'"
            )


def _check_case(config: Mapping[str, Any], name: str, own: Mapping[str, Task]) -> None:
    case = config["cases"][name]
    for other, entry in config["cases"].items():
        if other != name and entry["table"] == case["table"]:
            raise UserError(
                f"cases.{name} and cases.{other} both write {case['table']}; rename one"
            )
    expected = tasks_of(case)
    expected += [task for expert in case["experts"].values() for task in expert["domain"]]
    try:
        tasks = select(expected, own=own)
    except UserError as error:
        raise UserError(f"cases.{name}: {error}") from None
    _check_items(case, name, tasks)
    for expert, entry in case["experts"].items():
        for task in entry["domain"]:
            if task not in tasks_of(case):
                raise UserError(
                    f"cases.{name}.experts.{expert}: task {task} is not among the case's columns"
                )
    averaged = [task for column in case["columns"] for task in column["tasks"]]
    for task in case.get("dev_tasks", []):
        if task not in averaged:
            raise UserError(
                f"cases.{name}.dev_tasks: {task} is not among the case's columns"
                f"{nearest(task, averaged)}"
            )
    if "base" in case["experts"]:
        raise UserError(f"cases.{name}.experts: no expert can be called 'base'")


def _check_row(config: Mapping[str, Any], name: str) -> None:
    row, where = config["methods"][name], f"methods.{name}"
    methods = registry.describe()
    if ("hub" in row) == ("method" in row):
        raise UserError(
            f"{where} needs either a method or, of a published merge, its hub reference"
        )
    for case in row.get("cases", []):
        if case not in config["cases"]:
            raise UserError(f"{where}: unknown case {case!r}{nearest(case, config['cases'])}")
    if "hub" in row:
        return
    if row["method"] not in methods:
        raise UserError(
            f"{where}: unknown method {row['method']!r}{nearest(row['method'], methods)}"
        )
    if len(searches := [kind for kind in SEARCHES if kind in row]) > 1:
        raise UserError(f"{where} has both {searches[0]!r} and {searches[1]!r}; keep one")
    if "greedy" in row and (row["method"] != "linear" or row["set"]):
        raise UserError(
            f"{where}: 'greedy' is a uniform soup; its method is linear, and nothing stands "
            "under 'set'"
        )
    _check_evolve(row, where)
    for case in row.get("cases", config["cases"]):
        experts = config["cases"][case]["experts"]
        if name in experts or name == "base":
            raise UserError(f"{where}: {name!r} is the name of a model of {case}; choose another")
        for expert in row.get("experts", []):
            if expert not in experts:
                raise UserError(
                    f"{where}: {case} has no expert {expert!r}{nearest(expert, experts)}"
                )
    if "tune" in row and len(row["tune"]) != config["tuning"]["evaluations"]:
        raise UserError(
            f"{where}: {len(row['tune'])} candidates under 'tune', but tuning.evaluations gives "
            f"every method {config['tuning']['evaluations']}"
        )
    for candidate in row.get("tune", [{}]):
        try:
            resolved = registry.validate(row["method"], {**row["set"], **candidate})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for case in row.get("cases", config["cases"]):
            experts = row.get("experts", list(config["cases"][case]["experts"]))
            _check_experts(methods[row["method"]], resolved, experts, f"{where} in {case}")
        rows, samples = config["calibration"]["rows"], resolved.get("samples", 0)
        if "data" in methods[row["method"]].needs and samples > rows:
            raise UserError(
                f"{where}: {samples} samples per expert, but calibration.rows makes only {rows}"
            )


def _check_evolve(row: Mapping[str, Any], where: str) -> None:
    evolve = row.get("evolve", {})
    data_flow = evolve.get("space") == "data-flow"
    if data_flow and (row["method"] != "linear" or row["set"]):
        raise UserError(
            f"{where}: a search in data-flow space orders whole layers; its method is linear, and "
            "nothing stands under 'set'"
        )
    for name in evolve:
        if name in ("granularity", "kinds") if data_flow else name in DATA_FLOW:
            raise UserError(
                f"{where}: evolve.{name} belongs to the {'parameter' if data_flow else 'data-flow'}"
                " space; leave it out or set evolve.space"
            )
    if evolve and not data_flow:
        try:
            check_method(row["method"], registry.validate(row["method"], row["set"]))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if evolve.get("population", 0) > evolve.get("budget", 0):
        raise UserError(
            f"{where}: a population of {evolve['population']} does not fit into a budget of "
            f"{evolve['budget']} evaluations; give a smaller one, or none"
        )


def _check_experts(
    method: registry.MethodInfo, resolved: Mapping[str, Any], experts: list[str], where: str
) -> None:
    if method.experts is not None and len(experts) != method.experts:
        raise UserError(
            f"{where}: method {method.name} merges {method.experts} experts, not {len(experts)}; "
            "choose them under 'experts'"
        )
    for name, value in resolved.items():
        if not method.parameters[name].kind.per_expert or value is None:
            continue
        if isinstance(value, list) and len(value) != len(experts):
            raise UserError(f"{where}: {name} has {len(value)} numbers for {len(experts)} experts")
        if isinstance(value, dict) and set(value) != set(experts):
            odd = sorted(set(value) ^ set(experts))[0]
            raise UserError(f"{where}: {name} must name each expert once{nearest(odd, experts)}")


def _check_ablation(config: Mapping[str, Any]) -> None:
    ablation = config["ablation"]
    if ablation["case"] not in config["cases"]:
        raise UserError(
            f"ablation.case: unknown case {ablation['case']!r}"
            f"{nearest(ablation['case'], config['cases'])}"
        )
    if ablation["row"] not in config["methods"]:
        raise UserError(
            f"ablation.row: unknown row {ablation['row']!r}"
            f"{nearest(ablation['row'], config['methods'])}"
        )
    row = config["methods"][ablation["row"]]
    if published.is_searched(row):
        raise UserError(f"ablation.row: {ablation['row']} is searched for; name a fixed row")
    for name, entry in ablation["objectives"].items():
        try:
            resolved = registry.validate(
                row["method"],
                {
                    **row["set"],
                    **ablation["set"],
                    **entry["set"],
                    "objective": entry["objective"],
                },
            )
        except UserError as error:
            raise UserError(f"ablation.objectives.{name}: {error}") from None
        rows, samples = config["calibration"]["rows"], resolved.get("samples", 0)
        if samples > rows:
            raise UserError(
                f"ablation.objectives.{name}: {samples} samples per expert, but calibration.rows "
                f"makes only {rows}"
            )
