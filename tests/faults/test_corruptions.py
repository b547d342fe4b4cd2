"""Seeded damage to every kind of file that a run reads: named or harmless, never another number.

One file of the finished run is damaged, then a step that reads it is called with another output.
Either the step names the file, and writes nothing (of a report: every number is right or not
there), or what it makes is the same to the byte.
"""

from __future__ import annotations

import collections
import csv
import gzip
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from tests.faults.laboratory import CASE, amount, share

pytestmark = [pytest.mark.faults(short=True), pytest.mark.workflow, pytest.mark.timeout(3600)]
TRY = "tried"  # where the steps of this file write, below the results
# They depend on which other rows are there, or count them.
COMPARED = {"Avg below the highest", "Avg p", "Avg p (Holm)", "runs", "status"}
REPORT = ("tables", "figures", "page")
C = CASE
# Kind: the files, and what makes the results that are read from one (`NAME`: the file's model).
KINDS = {
    "weights of a model": (f"{C}/models/*/model.safetensors",
        ("test/NAME.json", "merges/soup", "smoke.json")),
    "weights of a merge": (f"{C}/merges/*/model.safetensors",
        ("test/NAME.json", "smoke.json", "inspection.json")),
    "configuration of a model": (f"{C}/models/*/*config.json", ("test/NAME.json", "merges/soup")),
    "tokenizer of a model": (f"{C}/models/*/tokenizer.json", ("test/NAME.json", "merges/soup")),
    "manifest of a model": (f"{C}/models/*/manifest.json",
        ("test/NAME.json", "merges/soup", "tables")),
    "manifest of a merge": (f"{C}/merges/*/manifest.json", ("test/NAME.json", "tables")),
    "test items": (f"{C}/data/test/*/*.jsonl", ("test/base.json",)),
    "dev items": (f"{C}/data/dev/*/*.jsonl", ("dev/base.json", "merges/ties_tuned")),
    "databases": (f"{C}/data/databases/*", ("test/sql.json",)),
    "calibration rows": (f"{C}/data/calibration/*", ("teachers", "merges/dam_paper")),
    "training rows": (f"{C}/data/train/*.jsonl", ("models/NAME",)),
    "manifest of data": (f"{C}/data/manifest.json",
        ("test/base.json", "merges/dam_paper", "models/de", "tables")),
    "teachers": (f"{C}/teachers/*.safetensors", ("merges/dam_paper",)),
    "manifest of teachers": (f"{C}/teachers/manifest.json", ("merges/dam_paper",)),
    "dev scores": (f"{C}/scores/dev/*.json", ("gate.json",)),
    "test scores": (f"{C}/scores/test/[a-z_]*.json", ("tables", "page")),
    "answers": (f"{C}/scores/test/*.items.jsonl.gz", ("tables", "page")),
    "gate, smoke check, inspection": (f"{C}/[gis]*.json", ("tables",)),
    "ablation": ("ablation/**/s*.json", ("tables",)),
    "stored tasks": ("store/*", ("store",)),
    "tables": ("tables/*", ("page",)),
    "figures": ("figures/*.png", ("page",)),
    "answers for the page": ("items/**/*", ("page",)),
}  # fmt: skip


def flipped(content, other, chance):
    place = chance.randrange(len(content))
    return (
        content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    )


def cut(content, other, chance):
    return content[: chance.randrange(len(content))]


def emptied(content, other, chance):
    return b""


def zeroed(content, other, chance):
    start = chance.randrange(len(content))
    size = min(chance.choice((1, 16, 512)), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def digit(content, other, chance):
    """Change one digit of a text, so that it stays one; of a packed text, inside its packing."""
    if content[:2] == b"\x1f\x8b":
        return gzip.compress(digit(gzip.decompress(content), other, chance), mtime=0)
    places = [n for n, byte in enumerate(content) if byte in b"0123456789"]
    if not places:
        return flipped(content, other, chance)
    place = chance.choice(places)
    new = chance.choice(sorted(set(b"123456789") - {content[place]}))
    return content[:place] + bytes([new]) + content[place + 1 :]


def repeated(content, other, chance):
    """Give a line, or a stretch of bytes, twice."""
    lines = content.splitlines(keepends=True)
    if len(lines) > 1 and content[:2] != b"\x1f\x8b":
        at = chance.randrange(len(lines))
        return b"".join([*lines[:at], lines[at], *lines[at:]])
    start = chance.randrange(len(content))
    return content[:start] + content[start : start + 64] + content[start:]


def exchanged(content, other, chance):
    """Put another file of the kind in its place."""
    return other


def lengthened(content, other, chance):
    return content + chance.randbytes(chance.choice((1, 8, 100)))


DAMAGES = (flipped, cut, zeroed, digit, repeated, exchanged, lengthened, emptied, flipped, digit)


class Bench:
    """The finished run, and what each step makes of undamaged files."""

    def __init__(self, project):
        self.project, self.right = project, {}
        self.steps = {step.out.removeprefix(f"results/{project.config['name']}/"): step
                      for step in project.steps()}  # fmt: skip

    def step(self, use, path):
        """Return the step that makes `use`, writing elsewhere."""
        if use == "store":
            found = self._of_stored(path)
        elif use in REPORT:
            found = self.steps["report.html" if use == "page" else use]
        else:
            name = use.replace(
                "NAME", path.stem if "/train/" in path.as_posix() else path.parent.name
            )
            place = (
                f"{CASE}/scores/{name}" if name.startswith(("test/", "dev/")) else f"{CASE}/{name}"
            )
            found = self.steps[place]
        arguments = list(found.arguments)
        out = arguments.index("--out") + 1
        arguments[out] = f"results/{self.project.config['name']}/{TRY}/{Path(arguments[out]).name}"
        if "--store" in arguments and use != "store":
            del arguments[arguments.index("--store") :][:2]
        return found._replace(arguments=arguments)

    def _of_stored(self, path):
        """Return the evaluation that made a file of the store."""
        key = json.loads(gzip.decompress(path.read_bytes()).split(b"\n")[0])["key"]
        for place, step in self.steps.items():
            scores = self.project.results / place
            if "scores" in scores.name or "/scores/" in place:
                made = json.loads(scores.read_text())
                if made["weights"] == key["weights"] and key["task"] in made["tasks"]:
                    return step
        raise AssertionError(path)

    def made(self):
        """Hash what a step made."""
        top = self.project.results / TRY
        return {
            path.relative_to(top).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(top.rglob("*"))
            if path.is_file() and not path.name.endswith(("cost.json", "cost.csv"))
        }

    def call(self, step):
        """Run a step into an empty place; return its exit code, output and what it made."""
        shutil.rmtree(self.project.results / TRY, ignore_errors=True)
        code, said = self.project.call(step)
        return code, said, self.made()

    def expected(self, step):
        """Return what a step makes of undamaged files."""
        key = json.dumps(step.arguments)
        if key not in self.right:
            code, said, self.right[key] = self.call(step)
            assert code == 0 and self.right[key], said
        return self.right[key]

    def numbers(self):
        """Yield the cells of the tables that were just made: table, row, column, text."""
        for path in sorted((self.project.results / TRY).rglob("*.csv")):
            for number, row in enumerate(csv.DictReader(path.read_text().splitlines())):
                for column, text in row.items():
                    if column not in COMPARED and any(c.isdigit() for c in text or ""):
                        yield path.name, row.get("id", number), column, text

    def statuses(self):
        """What the rows of the tables say of themselves."""
        found = set()
        for path in sorted((self.project.results / TRY).rglob("*.csv")):
            for row in csv.DictReader(path.read_text().splitlines()):
                found.add((path.name, row.get("id"), row.get("status")))
        return found


def judged(bench, kind, path, damage, use, chance):
    """Damage a file, call a step, and say how that ended: named, harmless, or what is wrong."""
    step = bench.step(use, path)
    right = bench.expected(step)
    numbers, statuses = set(), set()
    if use == "tables":
        bench.call(step)
        numbers, statuses = set(bench.numbers()), bench.statuses()
    content = path.read_bytes()
    siblings = [
        p for p in sorted(bench.project.results.glob(KINDS[kind][0])) if p.suffix == path.suffix
    ]
    other = chance.choice([p for p in siblings if p.read_bytes() != content] or [path])
    damaged = damage(content, other.read_bytes(), chance)
    path.write_bytes(damaged)
    try:
        code, said, made = bench.call(step)
    finally:
        path.write_bytes(content)
    where = f"{kind}: {path.relative_to(bench.project.results)}, {damage.__name__}, {step.name}"
    if "Traceback" in said:
        return f"{where}: traceback: {said[-1500:]}"
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "warning: "))]
    name = path.relative_to(bench.project.results).as_posix()
    named = any(name in line or f"{Path(name).parent}" in line for line in lines)
    if made == right:
        return "named" if named else "harmless"
    if damaged == content:
        return f"{where}: nothing was damaged, but the result differs"
    if use in REPORT and (named or use == "tables"):
        # A number is right, or is not there; a row without its numbers says why.
        wrong = sorted(map(str, set(bench.numbers()) - numbers))
        if wrong:
            return f"{where}: other numbers {wrong[:5]}"
        named = named or bench.statuses() != statuses
        return "named" if named else f"{where}: changed tables, and no word"
    if code != 0 and named and not made:
        return "named"
    return (
        f"{where}: exit code {code}, made {'something else' if made else 'nothing'}: {said[-600:]}"
    )


def plans(results, count):
    """Draw what is damaged how and who reads it, all kinds in turn, from a seed for each."""
    names = list(KINDS)
    for number in range(count):
        chance = random.Random(f"damage {number}")
        kind = names[number % len(names)]
        pattern, uses = KINDS[kind]
        paths = [path for path in sorted(results.glob(pattern)) if path.is_file()
                 and not path.name.endswith("cost.json") and path.stat().st_size]  # fmt: skip
        if kind == "configuration of a model":
            paths = [
                path for path in paths if path.name in ("config.json", "generation_config.json")
            ]
        yield kind, chance.choice(paths), chance.choice(DAMAGES), chance.choice(uses), chance


def test_damage_is_named_or_harmless_and_never_another_number(copied, finished, record_property):
    bench, wrong, noted = Bench(copied), [], finished.steps()
    counts = {kind: collections.Counter() for kind in KINDS}
    for kind, path, damage, use, chance in share(list(plans(copied.results, amount(12, 150, 500)))):
        verdict = judged(bench, kind, path, damage, use, chance)
        short = verdict if verdict in ("named", "harmless") else "wrong"
        wrong += [verdict] * (short == "wrong")
        counts[kind][short] += 1
    for kind, found in counts.items():
        if found:
            record_property(f"corruptions: {kind}", dict(found))
    total = sum(counts.values(), collections.Counter())
    record_property("corruptions: all", {"tried": total.total(), **total})
    assert not wrong, "\n".join(wrong)
    assert finished.steps() == noted  # what was called here is no step of the run
