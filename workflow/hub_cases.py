"""Cases of published checkpoints: what a configuration may say, and the options of their steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from evaluation.data.sources import load_sources
from evaluation.suites import load_suites, select
from merges.engine import registry
from paper.hub.lock import lock_of
from paper.hub.table import Reference, read_table

SEARCHES = ("tune", "evolve", "greedy")  # keys of a row that is chosen by its score on dev items


def is_fetched(case: Mapping[str, Any]) -> bool:
    """Tell a case of published checkpoints from one that the bottle makes."""
    return "hub" in case["base"]


def is_searched(row: Mapping[str, Any]) -> bool:
    """Tell whether a method row is chosen by its score on dev items."""
    return any(kind in row for kind in SEARCHES)


def table_of(config: Mapping[str, Any], root: Path) -> Path:
    """Return the table of references; a relative one is sought from the project's folder.

    Args:
        config: The resolved configuration.
        root: The project's folder.
    """
    return root / config["hub"]["table"]


def lock_file(config: Mapping[str, Any], root: Path) -> Path:
    """Return the lock of what was fetched; a mirror has one of its own, in the results."""
    if "mirror" in config["hub"]:
        return Path("results") / config["name"] / "hub.lock.json"
    return lock_of(table_of(config, root))


def _referred(
    references: Mapping[str, Reference], name: str, kind: str, where: str, table: Path
) -> None:
    if name not in references:
        raise UserError(f"{where}: {table} has no reference {name!r}{nearest(name, references)}")
    if references[name].kind != kind:
        raise UserError(f"{where}: {name} is a {references[name].kind} in {table}, not a {kind}")


def _check_made(case: Mapping[str, Any], where: str) -> None:
    for key in ("world", "model"):
        if key not in case:
            raise UserError(f"{where} lacks the key {key!r}; or give its base and experts as hub")
    for name, parent in {"base": case["base"], **case["experts"]}.items():
        if "hub" in parent:
            raise UserError(f"{where}: {name} is of the hub and the base is not; give all or none")
        if "train" not in parent:
            raise UserError(f"{where}: {name} lacks the key 'train'")


def _check_fetched(
    case: Mapping[str, Any], where: str, references: Mapping[str, Reference], table: Path
) -> None:
    for key in ("world", "model"):
        if key in case:
            raise UserError(f"{where}: {key!r} is of a bottle's case, and the base is of the hub")
    if "size" not in case:
        raise UserError(f"{where} lacks the key 'size', from which steps ask for memory and time")
    for name, parent in {"base": case["base"], **case["experts"]}.items():
        if "train" in parent:
            raise UserError(f"{where}: {name} cannot be trained, the base is of the hub")
        if "hub" not in parent:
            raise UserError(f"{where}: {name} lacks the key 'hub'")
        _referred(references, parent["hub"], "model", f"{where}: {name}", table)
        if "calibration" in parent:
            about = f"{where}: {name}.calibration"
            _referred(references, parent["calibration"]["hub"], "dataset", about, table)


def has_dev(task: str) -> bool:
    """Tell whether a published task has dev items: a training split whose rows no table shows.

    Args:
        task: suite/task, of a variant too.
    """
    suite, _, name = task.partition("/")
    if suite.partition(":")[0] not in load_suites():
        return True  # every task of a user's own has dev items
    plain = f"{suite.partition(':')[0]}/{name}"
    source = load_sources().get(plain)
    # The rows that a variant shows as examples are known for the suite's first number of them.
    same = select([task])[0].shots == select([plain])[0].shots
    return source is not None and source.dev is not None and same


def searched_tasks(case: Mapping[str, Any]) -> list[str]:
    """Name the tasks whose dev items guide the searches of a case, each once."""
    named = case.get("dev_tasks") or [task for c in case["columns"] for task in c["tasks"]]
    return list(dict.fromkeys(named))


def _check_dev(case: Mapping[str, Any], id: str, where: str) -> None:
    tasks = searched_tasks(case)
    if lacking := [task for task in tasks if not has_dev(task)]:
        left = [task for task in tasks if task not in lacking]
        rest = f", or name the others under cases.{id}.dev_tasks" if left else ""
        raise UserError(
            f"{where}: a searched row needs dev items, and none are published for "
            f"{', '.join(lacking)} of {id}; leave the case out under 'cases'{rest}"
        )


def dev_options(config: Mapping[str, Any], case: str) -> dict[str, Any]:
    """Return the options of `python -m evaluation data` for the dev items of a case's searches.

    Args:
        config: The resolved configuration.
        case: The case's name.

    Returns:
        Options by name; empty where no row of the case is searched.
    """
    rows = [row for row in config["methods"].values() if case in row.get("cases", [case])]
    if not any(map(is_searched, rows)):
        return {}
    plain = [
        f"{suite.partition(':')[0]}/{name}"
        for suite, _, name in (
            task.partition("/")
            for task in searched_tasks(config["cases"][case])
            if task not in config["tasks"]
        )
    ]
    return {"dev": ",".join(plain), "dev_items": config["evaluation"]["dev_items"]}


def _check_row(config: Mapping[str, Any], name: str, references: Mapping, table: Path) -> None:
    row, where = config["methods"][name], f"methods.{name}"
    cases = {case: config["cases"][case] for case in row.get("cases", config["cases"])}
    if "hub" in row:
        _referred(references, row["hub"], "model", where, table)
    for id, case in cases.items():
        if not is_fetched(case):
            if "hub" in row:
                raise UserError(f"{where}: {id} is of the bottle; a published merge is not of it")
            continue
        if is_searched(row):
            _check_dev(case, id, where)
        if "hub" in row or "data" not in registry.describe()[row["method"]].needs:
            continue
        for expert in row.get("experts", case["experts"]):
            if "calibration" not in case["experts"][expert]:
                raise UserError(f"{where}: {id}.experts.{expert} has no calibration data to learn")


def check(config: Mapping[str, Any], root: Path) -> None:
    """Refuse cases that are neither of the bottle nor of the hub, and unknown references.

    Args:
        config: The configuration with the schema's defaults filled in.
        root: The project's folder.

    Raises:
        UserError: One line with the place and, where there is one, the nearest valid name.
    """
    rows = config["methods"].values()
    if "stand_ins" in config["hub"] and "benchmarks" not in config["hub"]:
        raise UserError("hub.stand_ins names files below hub.benchmarks, which is not given")
    fetched = any(map(is_fetched, config["cases"].values())) or any("hub" in row for row in rows)
    table = table_of(config, root)
    references = read_table(table) if fetched else {}
    for name, case in config["cases"].items():
        if is_fetched(case):
            _check_fetched(case, f"cases.{name}", references, table)
        else:
            _check_made(case, f"cases.{name}")
    for name in config["methods"]:
        _check_row(config, name, references, table)


def pickled(config: Mapping[str, Any], root: Path) -> set[str]:
    """Name the parents whose weights the table allows to be pickles.

    Args:
        config: The resolved configuration.
        root: The project's folder.

    Returns:
        ``base`` or experts' names, of all published cases.
    """
    references = read_table(table_of(config, root))
    return {
        name
        for case in config["cases"].values()
        if is_fetched(case)
        for name, parent in {"base": case["base"], **case["experts"]}.items()
        if references[parent["hub"]].pickle
    }


def fetch_options(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return the options of `python -m paper fetch` that the configuration decides."""
    given: dict[str, Any] = {"table": table_of(config, root), "lock": lock_file(config, root)}
    if "mirror" in config["hub"]:
        given["mirror"] = config["hub"]["mirror"]
    return given


def benchmark_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `python -m evaluation data` that say where benchmarks come from."""
    names = {"benchmarks": "source", "stand_ins": "stand_ins"}
    return {option: config["hub"][key] for key, option in names.items() if key in config["hub"]}


def calibration_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `python -m paper calibration` for an expert's entry."""
    options: dict[str, Any] = {"answer": ",".join(entry["answer"])}
    if entry["prompt"]:
        options["prompt"] = ",".join(entry["prompt"])
    return options | {"joiner": entry["joiner"], "template": entry["template"]}
