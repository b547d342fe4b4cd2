"""The JSON schema for editors and the tables of docs, made from the configuration's models,
the registry of methods and the suites.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import write_text
from evaluation.suites import load_suites
from merges.engine import registry
from workflow.configuration import EXTENDS, Configuration

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "workflow/schemas/config.schema.json"
_BEGIN, _END = "<!-- table of python -m workflow schema -->\n", "<!-- end of table -->"
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS = {"multiple_choice": "choice", "generation": "text", "sql": "query"}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors.

    No key is required in it, and null is a value of every key, because of files that extend others.
    """
    schema = Configuration.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"][EXTENDS] = {
        "type": "string",
        "description": "A configuration that this file changes; relative to this file.",
    }
    for entry in [schema, *schema["$defs"].values()]:
        entry.pop("required", None)
        for name, value in entry["properties"].items():
            value.pop("title", None)
            for pattern, below in value.get("patternProperties", {}).items():
                value["patternProperties"][pattern] = _or_null(below)
            entry["properties"][name] = value if "anyOf" in value else _or_null(value)
    return schema


def _or_null(about: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [about, {"type": "null"}]}


def _without_null(about: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema without the null that says that the field may be absent."""
    options = [option for option in about.get("anyOf", []) if option.get("type") != "null"]
    return {**about, **options[0]} if options else about


def _values(about: dict[str, Any]) -> str:
    """Say in a few words what values a field takes."""
    about = _without_null(about)
    kind = about.get("type", "mapping" if "$ref" in about else "any value")
    if valid := about.get("enum", [about["const"]] if "const" in about else []):
        return ", ".join(f"`{str(value).lower()}`" for value in valid)
    if kind in ("integer", "number"):
        bounds = [f"{sign} {about[key]}" for key, sign in _SIGNS.items() if key in about]
        return f"{kind} {' and '.join(bounds)}".strip()
    if kind == "array":
        return f"list of {_values(about['items'])}"
    if kind == "object":
        return "mapping by name" if "patternProperties" in about else "mapping"
    if "/" in about.get("pattern", ""):
        return "suite/task"
    return {"boolean": "`true`, `false`", "string": "text"}.get(kind, kind)


def _below(about: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """Yield the places of the mappings in a field, each with the name of its definition."""
    about = _without_null(about)
    if "$ref" in about:
        yield place, about["$ref"].rpartition("/")[2]
    for named in about.get("patternProperties", {}).values():
        yield from _below(named, f"{place}.NAME")
    if isinstance(about.get("items"), dict):
        yield from _below(about["items"], place)


def _row(name: str, about: dict[str, Any], definition: dict[str, Any], shared: dict) -> str:
    own = _without_null(about)
    below = shared.get(own.get("$ref", "").rpartition("/")[2], {})
    default = "" if about.get("default") is None or below else f"`{json.dumps(about['default'])}`"
    if name in definition.get("required", []):
        default = "required"
    description = about.get("description", below.get("description"))
    return f"| `{name}` | {description} | {_values(about)} | {default} |"


def _sections(
    shared: dict[str, Any], definition: dict[str, Any], place: str, seen: set[str]
) -> Iterator[str]:
    """Yield a table of keys for a mapping, then those of the mappings in it, each once."""
    yield f"\n## {f'`{place}`' if place else 'The file'}\n"
    yield f"\n{' '.join(definition['description'].split())}\n\n"
    yield "| key | meaning | values | default |\n|---|---|---|---|\n"
    fields = definition["properties"]
    yield "".join(f"{_row(name, about, definition, shared)}\n" for name, about in fields.items())
    for name, about in fields.items():
        for where, below in _below(about, f"{place}.{name}".lstrip(".")):
            if below not in seen:
                seen.add(below)
                yield from _sections(shared, shared[below], where, seen)


def _source(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    if number != paper:
        return f"[{paper}](https://arxiv.org/abs/{number})"
    return f"[its author's page]({paper})" if paper.startswith("https://") else paper


def _methods() -> list[str]:
    """List the published methods; one that names no paper is its user's own."""
    lines = ["| method | from | needs | acts on |", "|---|---|---|---|"]
    for name, info in registry.describe().items():
        experts = [f"{info.experts} expert{'s' * (info.experts > 1)}"] if info.experts else []
        seen = [f"{kind} of the {whose}" for whose, kind in info.statistics.items()]
        needs = ", ".join([*sorted(info.needs), *seen, *experts]) or "-"
        acts = "whole models" if info.whole_model else info.unit
        if info.paper:
            lines.append(f"| `{name}` | {info.title}, {_source(info.paper)} | {needs} | {acts} |")
    return lines


def _bottle_tasks() -> list[str]:
    lines = ["| task | shaped like | answer | score | chance |", "|---|---|---|---|---|"]
    tasks = [task for suite in load_suites().values() for task in suite.tasks.values()]
    for task in tasks:
        if task.maker == "bottle":
            answer = _KINDS[task.kind]
            answer += f", at most {task.max_tokens} tokens" if task.max_tokens else ""
            lines.append(
                f"| {task.name} | {task.like} | {answer} | {task.metric} | {task.chance:.2f} |"
            )
    return lines


def _keys() -> list[str]:
    """Make a table of keys for each mapping of a configuration."""
    schema = Configuration.model_json_schema()
    return "".join(_sections(schema["$defs"], schema, "", set())).rstrip().splitlines()


def contents() -> dict[str, str]:
    """Return the generated files by path: the schema, and pages with their tables made again."""
    schema = json.dumps(json_schema(), indent=1, ensure_ascii=False)
    made = {SCHEMA: f"{schema}\n"}
    tables = {"configuration": _keys(), "merging": _methods(), "evaluation": _bottle_tasks()}
    for name, lines in tables.items():
        path = f"docs/{name}.md"
        before, rest = (ROOT / path).read_text(encoding="utf-8").split(_BEGIN, 1)
        made[path] = "\n".join([before + _BEGIN.strip(), *lines, _END + rest.split(_END, 1)[1]])
    return made


def write() -> None:
    """Write the generated files."""
    for path, text in contents().items():
        write_text(ROOT / path, text)
        print(path)
