"""Tiny random models of the published architectures, in the files that the hub has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def _save(model, folder: Path, pickled: bool) -> None:
    import torch

    if pickled:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="100KB")


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
        extra: By repository, tokens of its own.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from paper.rehearsal.tokenizers import llama3_tokenizer, mistral_tokenizer

    disable_progress_bar()
    extra = extra or {}
    weights = None
    for number, repository in enumerate(repositories):
        if kind == "mistral":
            tokenizer = mistral_tokenizer(text, extra.get(repository, ()))
            config = MistralConfig(
                **_SHAPE,
                vocab_size=len(tokenizer),
                sliding_window=4096,
                max_position_embeddings=32_768,
            )
            family = MistralForCausalLM
        else:
            tokenizer = llama3_tokenizer(text)
            config = LlamaConfig(
                **_SHAPE,
                vocab_size=len(tokenizer),
                rope_theta=500_000.0,
                max_position_embeddings=8192,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            family = LlamaForCausalLM
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        model = family(config)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if weights is not None:
                    old = weights[name]
                    drift = _DRIFT * torch.randn(old.shape, generator=generator)
                    # Rows of an expert's own tokens keep their random start.
                    tensor[: old.shape[0]] = old + drift * old.abs().mean()
        if weights is None:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        target = folder / repository
        target.mkdir(parents=True, exist_ok=True)
        _save(model.to(torch.bfloat16), target, repository in pickled)
        tokenizer.save_pretrained(target)
