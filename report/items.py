"""Every answer next to the page: scripts that a reader's browser loads when they are asked for.

A page from file:// may not fetch data, but it may load scripts. So each script is a call with a
file's bytes, which the browser unpacks: nothing is parsed here.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from common.files import write_text
from common.manifest import NAME, check_recorded, write_manifest
from report.experiment import Experiment
from report.origin import tables


def _sources(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """Yield the names under which the page asks for files of answers and questions, and these."""
    results, seen = experiment.results, set()
    for table in tables(experiment).values():
        for run in (run for line in table.lines.values() for run in line.runs):
            yield run.scores.removesuffix(".json"), results / run.items
            new = [task for task in run.model.tasks if (run.data, task) not in seen]
            seen |= {(run.data, task) for task in new}
            for task in new:
                # Prompts depend on a task's variant, which its rows do not know.
                group, _, id = task.partition("/")
                name = f"{group.replace(':', '-')}/{id}"
                prompts = (results / run.data).with_name("prompts") / f"{name}.jsonl.gz"
                rows = results / run.data / f"test/{group.split(':')[0]}/{id}.jsonl"
                yield f"{run.data}/test/{name}", prompts if prompts.is_file() else rows


def write(experiment: Experiment, out: Path, faults: list[str]) -> int:
    """Write a script for each file of answers and each task's questions; last, their manifest.

    Args:
        experiment: The experiment.
        out: The folder.
        faults: Takes a line for each file that is not as its manifest says; it is left out.

    Returns:
        How many scripts there are; files that the results lack are left out.
    """
    (out / NAME).unlink(missing_ok=True)
    files = {}
    for name, source in dict(_sources(experiment)).items():
        try:
            check_recorded(source)
        except UserError as error:
            faults.append(str(error))
            continue
        if source.is_file():
            content = source.read_bytes()
            packed = content if source.suffix == ".gz" else gzip.compress(content, mtime=0)
            text = base64.b64encode(packed).decode()
            files[f"{name}.js"] = out / f"{name}.js"
            write_text(files[f"{name}.js"], f"itemsLoaded({json.dumps(name)},{json.dumps(text)})\n")
    code = ("report/items.py",)
    write_manifest(out / NAME, kind="items", parameters={}, outputs=files, code=code)
    return len(files)
