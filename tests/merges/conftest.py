"""Tiny models with which the merge tests work, and what they are compared against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

EXPERTS = ("ja", "math", "sql")


def _tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with `base`, `ja`, `math`, `sql`: a float32 Llama or a bfloat16 Mistral."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

        from checkpoints.writing import write_model

        if architecture in made:
            return made[architecture]
        config, model = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "mistral": (MistralConfig, MistralForCausalLM),
        }[architecture]
        dtype = torch.float32 if architecture == "llama" else torch.bfloat16
        settings = config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            dtype=str(dtype).removeprefix("torch."),
        )
        top = tmp_path_factory.mktemp(architecture)
        tokenizer = _tokenizer(top / "tokenizer")
        generator = torch.Generator().manual_seed(7)
        network = model(settings)
        base = {
            name: torch.randn(value.shape, generator=generator) * 0.2
            for name, value in network.state_dict().items()
        }
        for name in ("base", *EXPERTS):
            tensors = {
                key: value + (name != "base") * 0.05 * torch.randn(value.shape, generator=generator)
                for key, value in base.items()
            }
            network.to(torch.float32).load_state_dict(tensors)
            (top / name).mkdir()
            write_model(top / name, network.to(dtype), tokenizer)
        made[architecture] = top
        return top

    return make


@pytest.fixture(scope="session")
def llama(family: Callable[[str], Path]) -> Path:
    """The float32 Llama family's folder."""
    return family("llama")


@pytest.fixture(scope="session")
def mistral(family: Callable[[str], Path]) -> Path:
    """The bfloat16 Mistral family's folder."""
    return family("mistral")
