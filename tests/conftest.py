"""Fixtures that several packages share: tiny models on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("BOTTLE_HASH_CACHE", "off")  # the user's own cache is not the tests' place
# Images of containers often forbid compiled modules; each command that a test starts would then
# compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def behind_bos(tokenizer):
    """Have a tokenizer put ``<s>``, number 1, in front of a text, as that of Llama does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def tiny_tokenizer(folder: Path, size: int) -> None:
    """Write a word-level tokenizer with `size` entries: four special ones, then w4, w5 ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words = special | {f"w{i}": i for i in range(4, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def tiny_model(
    folder: Path, architecture: str = "llama", seed: int = 0, vocabulary: int = 48, **changes
) -> Path:
    """Write a complete random model folder: 2 layers, width 32, grouped-query attention.

    Args:
        folder: Where.
        architecture: llama or mistral.
        seed: Of the weights.
        vocabulary: Entries of the tokenizer and rows of the embedding.
        changes: Other values of the configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[architecture]
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**(values | changes)))
    model.save_pretrained(folder)
    tiny_tokenizer(folder, vocabulary)
    return folder


@pytest.fixture(scope="session")
def make_model():
    """The function that writes a tiny model folder; see `tiny_model`."""
    return tiny_model


_WHY_NOT = {
    "workflow": "slow tests of the workflow: `make test` runs them",
    "slow": "tests of many seconds: `make test` runs them",
    "postgres": "tests with a PostgreSQL server: `make test` runs them",
    "faults": "long fault tests: `make test-faults` runs them",
    "vllm": "needs vLLM: `make test-vllm` gives it an environment of its own",
    "slurm": "needs Slurm: `make test-slurm` installs it and runs them",
    "gpu": "needs a GPU: `make test-all` runs them where one is present",
    "rehearsal": "the whole rehearsal of the paper scale: `make test-all` runs it",
}
_left_out: dict[str, int] = {}
_after_collecting: set[str] = set()


def pytest_collection_finish():
    """Note which modules are loaded before the first test runs."""
    _after_collecting.update(sys.modules)


@pytest.fixture
def loaded_by_collecting():
    """The names of all modules that collecting the chosen tests has loaded."""
    return _after_collecting


def pytest_deselected(items):
    """Count what a marker expression leaves out, so that the summary can say why."""
    for item in items:
        faults = item.get_closest_marker("faults")
        if faults and faults.kwargs.get("short"):
            continue  # `make test` runs them
        for marker in _WHY_NOT:
            if item.get_closest_marker(marker):
                _left_out[marker] = _left_out.get(marker, 0) + 1
                break


def pytest_sessionfinish(session):
    """Pass a worker's counts to the process that writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = _left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take a worker's counts; all workers have the same, for each collects every test."""
    _left_out.update(getattr(node, "workeroutput", {}).get("left out", {}))


def pytest_terminal_summary(terminalreporter):
    """Name what was not run and why, beside pytest's own list of skips."""
    if terminalreporter.config.option.keyword:
        return  # whoever chose tests by name knows what was left out
    for marker, count in sorted(_left_out.items()):
        terminalreporter.write_line(f"NOT RUN [{count}] {marker}: {_WHY_NOT[marker]}")
