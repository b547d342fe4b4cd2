"""What every row answered, item by item, in the small form that paired comparisons need."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import operator
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import MALFORMED, read_json, write_bytes
from common.hashes import cache_folder
from common.manifest import check_recorded
from report.experiment import Answers, Model
from report.reading import Reader

CONSTANT = 0.95  # share of items with one answer from which a model counts as giving no other
ALIKE = 0.99  # share of items with an expert's answer from which a merge counts as that expert
# Metrics whose score is the mean of the items'; others, such as an F1, cannot be checked so.
_MEANS = ("acc", "acc_norm", "acc_bytes", "exact_match", "last_integer", "execution")
_ANSWERS = ("answer", "gold")
_FORM = "2"  # of the cache
_WORLDS_KEPT = 40  # in the cache
_BITS = {"0": 0.0, "1": 1.0}


def _pack(scores: Sequence[float]) -> Any:
    """Write scores as base64: a bit an item where all are 0 or 1, else a byte and the values."""
    values = sorted(set(scores))
    if set(values) <= {0.0, 1.0}:
        number = int("1" + "".join("1" if score else "0" for score in scores), 2)
        return base64.b64encode(number.to_bytes((number.bit_length() + 7) // 8)).decode()
    if len(values) > 256:
        return list(scores)
    places = {value: place for place, value in enumerate(values)}
    return [values, base64.b64encode(bytes(places[score] for score in scores)).decode()]


def _unpack(packed: Any) -> tuple[float, ...]:
    if isinstance(packed, str):
        number = int.from_bytes(base64.b64decode(packed))
        return tuple(map(_BITS.__getitem__, f"{number:b}"[1:]))  # the first only keeps zeros
    if packed and isinstance(packed[0], list):
        values, places = packed
        return tuple(values[place] for place in base64.b64decode(places))
    return tuple(map(float, packed))


def packed(answers: Answers, facts: bool = True) -> dict[str, Any]:
    """Write answers as a small JSON value; facts are the same for all rows of a world."""
    scores = {task: _pack(values) for task, values in answers.scores.items()}
    # `asdict` would copy every number.
    found = {field.name: getattr(answers, field.name) for field in dataclasses.fields(answers)}
    found |= {"scores": scores}
    return found if facts else found | {"facts": {}}


def unpacked(content: Mapping[str, Any]) -> Answers:
    """Read what `packed` wrote."""
    return Answers(
        ids=content["ids"],
        scores={task: _unpack(values) for task, values in content["scores"].items()},
        facts={task: tuple(values) for task, values in content["facts"].items()},
        top={task: (share, gold) for task, (share, gold) in content["top"].items()},
        same=content["same"],
        faults=tuple(content["faults"]),
    )


# A record's first fields as an evaluation writes them; the rest, most of the file, is not needed.
_FIELD = rb'(\d+|"[^"\\]*(?:\\.[^"\\]*)*")'
_RECORD = re.compile(
    rb'^\{"task": "([^"\\]*)", "id": "([^"\\]*)", "score": ([-+.\deE]+), "answer": '
    + _FIELD + rb', "gold": ' + _FIELD + rb"[^\n]*\n?",
    re.M,
)  # fmt: skip
# By task: the items' names, scores, answers and gold answers, each in the order of the file.
Records = dict[
    str, tuple[tuple[bytes, ...], tuple[float, ...], tuple[bytes, ...], tuple[bytes, ...]]
]


def _records(data: bytes) -> Records:
    """Read a file of items; see `Records`."""
    text = gzip.decompress(data)
    rows = _RECORD.findall(text)
    lines = text.count(b"\n") + (text[-1:] not in (b"", b"\n"))
    if len(rows) != lines:  # not written by an evaluation, or with other answers
        rows = [
            [str(record[name]).encode() for name in ("task", "id", "score")]
            + [json.dumps(record.get(name), ensure_ascii=False).encode() for name in _ANSWERS]
            for record in map(json.loads, text.splitlines())
        ]
    found: dict[bytes, list] = {}
    for task, records in itertools.groupby(rows, operator.itemgetter(0)):
        found.setdefault(task, []).extend(records)
    columns = {task.decode(): zip(*records, strict=True) for task, records in found.items()}
    return {
        task: (ids, tuple(map(float, scores)), answers, golds)
        for task, (_, ids, scores, answers, golds) in columns.items()
    }


def _facts(golds: Sequence[bytes]) -> tuple[int, ...]:
    """Number the facts that a task asks for: items of a text answer with the same right one.

    Empty where each item is alone, or where the answer is the number of a choice.
    """
    if all(gold.isdigit() for gold in golds) or len(set(golds)) == len(golds):
        return ()
    places = {gold: place for place, gold in enumerate(dict.fromkeys(golds))}
    return tuple(places[gold] for gold in golds)


def _share(values: Sequence[bytes]) -> float:
    return collections.Counter(values).most_common(1)[0][1] / len(values)


def _alike(mine: Records, theirs: Mapping[str, Mapping[bytes, bytes]]) -> float:
    """Return the share of a model's items to which another one, by task and name, answered so."""
    equal = 0
    for task, (ids, _, answers, _) in mine.items():
        equal += sum(map(operator.eq, map(theirs.get(task, {}).get, ids), answers))
    return equal / max(sum(len(ids) for ids, *_ in mine.values()), 1)


def summarised(
    found: Records, experts: Mapping[str, Mapping[str, Mapping[bytes, bytes]]]
) -> Answers:
    """Summarise a model's records; see `Answers`.

    Args:
        found: The records.
        experts: By expert, task and item, its answers.
    """
    twice = {task: len(ids) - len(set(ids)) for task, (ids, *_) in found.items()}
    return Answers(
        ids={task: hashlib.sha256(b"\n".join(ids)).hexdigest()[:16]
             for task, (ids, *_) in found.items()},
        scores={task: scores for task, (_, scores, *_) in found.items()},
        facts={task: facts for task, (*_, golds) in found.items() if (facts := _facts(golds))},
        top={task: (_share(given), _share(golds)) for task, (*_, given, golds) in found.items()},
        same={expert: _alike(found, theirs) for expert, theirs in experts.items()},
        faults=tuple(f"{task} has {count} items twice" for task, count in twice.items() if count),
    )  # fmt: skip


def _read_all(reader: Reader, paths: Mapping[str, Path], experts: Sequence[str]) -> dict:
    """Read a world's files of items into `Answers`, by row; a damaged one is a fault."""
    found: dict[str, Records] = {}
    for id, path in paths.items():
        try:
            found[id] = _records(path.read_bytes())
        except (OSError, EOFError, LookupError, TypeError, *MALFORMED, zlib.error) as error:
            reader.fault(f"{path}: damaged ({error!r}); evaluate the model again")
    parents = {
        expert: {
            task: dict(zip(ids, answers, strict=True))
            for task, (ids, _, answers, _) in found[expert].items()
        }
        for expert in experts
        if expert in found
    }
    return {id: summarised(records, parents) for id, records in found.items()}


def _recalled(reader: Reader, paths: Mapping[str, Path], experts: Sequence[str]) -> dict:
    """Do what `_read_all` does, or recall it where every file has been read before."""
    content = [_FORM, *experts]
    content += [
        f"{id} {hashlib.sha256(path.read_bytes()).hexdigest()}" for id, path in paths.items()
    ]
    key = hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]
    folder = cache_folder()
    place = folder / "answers" / f"{key}.json" if folder else None
    if place and place.exists():
        with contextlib.suppress(UserError, AttributeError, KeyError, TypeError, ValueError):
            return {id: unpacked(entry) for id, entry in read_json(place).items()}
    found = _read_all(reader, paths, experts)
    if place and len(found) == len(paths):
        with contextlib.suppress(OSError, UserError):
            text = json.dumps({id: packed(answers) for id, answers in found.items()})
            write_bytes(place, text.encode())
            old = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in old[:-_WORLDS_KEPT]:
                path.unlink()
    return found


def items_path(scores: Path) -> Path:
    """Return the place of a score file's items."""
    return scores.with_name(f"{scores.name.removesuffix('.json')}.items.jsonl.gz")


def _unlike(model: Model, found: Answers) -> dict[str, str]:
    """Say by task how a row's scores differ from its items, but for those accepted as edited."""
    if model.edited:
        return {}
    asked = model.evaluated.get("tasks", {})
    wrong = {}
    for task, score in model.tasks.items():
        values = found.scores.get(task)
        if values is None:
            continue
        mean = math.fsum(values) / len(values)
        if len(values) != score.items:
            wrong[task] = f"{task} has {len(values)} items, its score {score.items}"
        elif asked.get(task, {}).get("metric") in _MEANS and abs(mean - score.value) > 1e-6:
            wrong[task] = f"{task} has the score {score.value:g}, the mean of its items is {mean:g}"
    return wrong


def _places(
    reader: Reader, models: Sequence[Model], paths: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[str, Answers]]:
    """Find the rows' files of items, and what was kept where there are none."""
    there, kept = {}, {}
    for model in models:
        path, small = items_path(paths[model.id]), paths[model.id].with_suffix(".answers.json")
        if model.status != "ok":
            continue
        if path.exists():
            try:
                check_recorded(path)
                there[model.id] = path
            except UserError as error:
                reader.fault(str(error))
        elif small.exists():
            kept[model.id] = unpacked(read_json(small))
    return there, kept


def attached(reader: Reader, models: Sequence[Model], paths: Mapping[str, Path]) -> list[Model]:
    """Add their answers to rows of one world, as far as there are files of items or kept ones.

    Args:
        reader: Collects what is wrong with files.
        models: The rows; a score that its own items contradict is taken out.
        paths: Of their score files, by row.
    """
    there, kept = _places(reader, models, paths)
    experts = [model.id for model in models if model.kind == "expert" and model.id in there]
    known = kept | (_recalled(reader, there, experts) if there else {})
    facts = {task: numbers for one in known.values() for task, numbers in one.facts.items()}
    made = []
    for model in models:
        if model.id not in known:
            made.append(model)
            continue
        own = dataclasses.replace(known[model.id], facts=facts)
        wrong = _unlike(model, own) | {line.split()[0]: line for line in own.faults}
        where = items_path(paths[model.id])
        for line in wrong.values():
            reader.fault(f"{line} in {where}; evaluate the model again")
        lacking = {task: reader.short(f"{line} in {where}") for task, line in wrong.items()}
        tasks = {task: score for task, score in model.tasks.items() if task not in wrong}
        made.append(
            dataclasses.replace(
                model, answers=own, tasks=tasks, lacking={**model.lacking, **lacking}
            )
        )
    return made


def is_constant(answers: Answers, task: str) -> bool:
    """Return whether nearly all items of a task got one answer although most have another."""
    share, gold = answers.top.get(task, (0.0, 0.0))
    return share >= CONSTANT > gold


def disguises(model: Model) -> dict[int | None, str]:
    """Return by world the expert whose answers a merge gives, where it gives one's."""
    found = {}
    for seed, one in model.each.items():
        same = one.answers.same if one.answers and one.kind == "merge" else {}
        expert = max(same, key=lambda name: same[name], default=None)
        if expert is not None and same[expert] >= ALIKE:
            found[seed] = expert
    return found


def is_an_expert(worlds: Mapping[Any, Model]) -> bool:
    """Return whether a merge answers as an expert does in most of its worlds."""
    return 2 * sum(len(disguises(model)) for model in worlds.values()) > len(worlds)
