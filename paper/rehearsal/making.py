"""The folder of a rehearsal: stand-ins for all that is fetched, the paper's configuration on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common import sources
from common.errors import UserError
from common.files import read_json, staged_directory, write_text
from common.manifest import NAME, hash_of, write_manifest
from common.sources import ROOT
from evaluation.data.sources import select_sources
from paper.hub.table import Reference, read_table
from paper.rehearsal import benchmarks, datasets
from paper.rehearsal.models import write_family

_ROWS = 12  # calibration rows per expert
_LENGTH = 256  # tokens: some rows are cut
_SAMPLES = 8  # rows that a training sees
_OBJECTIVES = ("kl", "mse", "entropy")  # one of each kind, with a seed
_ITEMS = 4  # of each task
_OWN_TOKENS = {"GAIR/Abel-7B-002": ("[PAD]",)}  # as the published model has
# With both cases' bases this row is evaluated by vLLM: a merge whose vocabulary was cropped.
_VLLM_ROW = "dam_paper"
_CODE = ("paper/rehearsal/making.py", "evaluation/data/sources.yaml")


@dataclass(frozen=True)
class Choices:
    """What a rehearsal takes from the machine.

    Attributes:
        benchmarks: Folder of local copies of real benchmark files; None where there is none.
        engine: What runs the SQL: sqlite or postgres.
        vllm: Python of an environment with vLLM; None where there is none.
    """

    benchmarks: Path | None = None
    engine: str = "sqlite"
    vllm: Path | None = None


def _families(config: dict[str, Any], table: dict[str, Reference]) -> dict[str, list[Reference]]:
    """List each case's models, the base first, then experts and published merges."""
    families = {}
    for name, case in config["cases"].items():
        parents = [case["base"], *case["experts"].values()]
        rows = [
            row
            for row in config["methods"].values()
            if "hub" in row and name in row.get("cases", [name])
        ]
        families[name] = [table[entry["hub"]] for entry in [*parents, *rows]]
    return families


def _kind(base: Reference) -> str:
    if "mistral" in base.repository.lower():
        return "mistral"
    if "llama-3" in base.repository.lower():
        return "llama3"
    raise UserError(f"{base.repository}: no stand-in is known for it; rehearse with paper.yaml")


def _tasks(config: dict[str, Any]) -> list[str]:
    """List the benchmarks of all cases, each once, whatever variant a column names."""
    columns = [
        column
        for case in config["cases"].values()
        for column in [*case["columns"], *case.get("beside", [])]
    ]
    tasks = (task.partition("/") for column in columns for task in column["tasks"])
    return list(dict.fromkeys(f"{suite.split(':')[0]}/{task}" for suite, _, task in tasks))


def _shrunk(config: dict[str, Any], folder: Path, how: Choices) -> dict[str, Any]:
    """Change only the settings that the machine at hand cannot follow."""
    config["name"] = "rehearsal"
    config["hub"] |= {
        "mirror": str(folder / "mirror"),
        "benchmarks": str(folder / "benchmarks"),
        "stand_ins": str(folder / "benchmarks" / benchmarks.TABLE),
    }
    config["evaluation"] |= {"backend": "hf", "device": "cpu", "engine": how.engine}
    config["evaluation"] |= {"dtype": "float32", "batch_size": 16, "limit": _ITEMS}
    config["calibration"] |= {"rows": _ROWS, "max_length": _LENGTH}
    for case in config["cases"].values():
        case["size"]["parameters"] = 1e5
        # In every caption, for the rows have the published models' names.
        case["title"] = f"A rehearsal on tiny random models. {case['title']}"
    for row in config["methods"].values():
        if row.get("method") in ("dam", "adamerging"):
            row["set"] = {**row["set"], "samples": _SAMPLES}
    if how.vllm is not None:
        config["evaluation"]["interpreters"] = {"vllm": str(how.vllm.absolute())}
        bases = [case["base"] for case in config["cases"].values()]
        for entry in [*bases, config["methods"][_VLLM_ROW]]:
            entry["backend"] = "vllm"
    ablation = config["ablation"]
    ablation["seeds"] = ablation["seeds"][:1]
    ablation["objectives"] = {name: ablation["objectives"][name] for name in _OBJECTIVES}
    return config


def _record(source: Path, table: Path, tasks: list[str], folder: Path | None) -> dict[str, Any]:
    """List all that the stand-ins depend on, as arguments of a manifest."""
    inputs = {"config": source, "table": table}
    if folder is None:
        return {"parameters": {"real_rows": False}, "inputs": inputs}
    for one in select_sources(tasks):
        for file in (file for role in one.files for file in one.candidates(role)):
            if (folder / file.path).is_file():
                inputs[f"{one.name}: {file.path}"] = folder / file.path
    return {"parameters": {"real_rows": True}, "inputs": inputs}


def _holds(out: Path, record: dict[str, Any]) -> bool:
    """Return whether a folder holds the stand-ins that would be made now."""
    if not (out / NAME).is_file():
        return False
    there = read_json(out / NAME)
    hashes = {name: hash_of(path) for name, path in record["inputs"].items()}
    asked = (record["parameters"], hashes, sources.version(_CODE))
    return (there["parameters"], there["inputs"], there["code"]) == asked


def make(source: Path, out: Path, how: Choices) -> list[str]:
    """Make the folder, or keep the stand-ins that it holds, so that a stopped run can resume.

    Args:
        source: The configuration to rehearse.
        out: The folder: new, empty, or of an earlier call.
        how: What the machine has.

    Returns:
        Names of the benchmarks that have real rows.

    Raises:
        UserError: The folder holds something else, a base has no stand-in, or the table lacks a
            reference.
    """
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    path = ROOT / config["hub"]["table"]
    table, tasks = read_table(path), _tasks(config)
    record = _record(source, path, tasks, how.benchmarks)
    if not _holds(out, record):
        if out.exists() and (out.is_file() or any(out.iterdir())):
            raise UserError(
                f"{out} is not empty, and holds no rehearsal of this code and these options; "
                "remove it or give a new folder"
            )
        families = _families(config, table).values()
        with staged_directory(out) as folder:
            datasets.write_datasets(folder / "mirror")
            real = benchmarks.write_benchmarks(tasks, how.benchmarks, folder / "benchmarks")
            for family in families:
                write_family(
                    _kind(family[0]),
                    [reference.repository for reference in family],
                    datasets.text() + benchmarks.text(),
                    folder / "mirror",
                    pickled=[reference.repository for reference in family if reference.pickle],
                    extra=_OWN_TOKENS,
                )
            extra = {"real": real}
            write_manifest(folder / NAME, kind="rehearsal", **record, code=_CODE, extra=extra)
    # Written at each call: its options may choose another engine for the same stand-ins.
    shrunk = _shrunk(config, out.resolve(), how)
    write_text(out / "config.yaml", yaml.safe_dump(shrunk, allow_unicode=True, sort_keys=False))
    return read_json(out / NAME)["extra"]["real"]
