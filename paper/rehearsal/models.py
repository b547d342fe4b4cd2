"""Tiny random models of the published architectures, in the files that the hub has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_WIDTH = 64
# Of the random weights: larger than usual, so that models have preferences, and answers differ.
_INITIAL = 0.15
_DRIFT = 0.5  # of an expert's weights from the base's mean size: enough that scores differ
_SHAPE = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # head size 32, the smallest that vLLM serves
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "initializer_range": _INITIAL,
}


def _untrained(kind: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    rows = len(tokenizer)
    places: dict[str, float]
    if kind == "mistral":
        places = {"sliding_window": 4096, "max_position_embeddings": 32_768}
        return MistralForCausalLM(MistralConfig(**_SHAPE, vocab_size=rows, **places))
    places = {"rope_theta": 500_000.0, "max_position_embeddings": 8192}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, vocab_size=rows, **places, **ends))


def write_family(
    kind: str,
    repositories: Sequence[str],
    text: Sequence[str],
    folder: Path,
    *,
    pickled: Sequence[str] = (),
    extra: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a base and models that were "fine-tuned" from it by adding noise.

    Args:
        kind: ``mistral`` or ``llama3``.
        repositories: Names on the hub; the first is the base.
        text: What the tokenizer is trained on.
        folder: The mirror; each goes to FOLDER/OWNER/NAME.
        pickled: Those whose weights exist only as pickles.
        extra: By repository, tokens that only it has (Mistral alone).
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from paper.rehearsal.tokenizers import llama3_tokenizer, mistral_tokenizer

    disable_progress_bar()
    base: dict[str, torch.Tensor] = {}
    for number, repository in enumerate(repositories):
        own = (extra or {}).get(repository, ())
        tokenizer = mistral_tokenizer(text, own) if kind == "mistral" else llama3_tokenizer(text)
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        model = _untrained(kind, tokenizer)
        weights = model.state_dict()
        for name, old in base.items():
            drift = _DRIFT * torch.randn(old.shape, generator=generator)
            # Rows of an expert's own tokens keep their random start.
            weights[name][: old.shape[0]] = old + drift * old.abs().mean()
        base = base or {name: tensor.clone() for name, tensor in weights.items()}
        target = folder / repository
        target.mkdir(parents=True, exist_ok=True)
        model.to(torch.bfloat16)
        if repository in pickled:
            model.config.save_pretrained(target)
            torch.save(model.state_dict(), target / "pytorch_model.bin")
        else:
            model.save_pretrained(target, max_shard_size="100KB")
        tokenizer.save_pretrained(target)
