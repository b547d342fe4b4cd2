"""The model classes that answer lm-eval's requests: `hf` and `vllm`, one rule of tokenisation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evaluation.backends.base import Backend

BACKENDS = ("hf", "vllm")


def open_backend(
    backend: str,
    model: PreTrainedModel | Path | str,
    tokenizer: PreTrainedTokenizerBase,
    **settings: Any,
) -> Backend:
    """Start a backend with its first model.

    Args:
        backend: hf or vllm.
        model: The model's folder; for hf also the model itself.
        tokenizer: The tokenizer that all models share.
        settings: `batch_size`, `rule`, `max_length`, `dtype`, `device` and `name`; see
            `HFBackend`.

    Returns:
        The backend; `serve` gives it the next model.

    Raises:
        UserError: There is no such backend, vLLM is not installed, or the folder is not a model.
    """
    if backend == "hf":
        from evaluation.backends.hf import HFBackend

        return HFBackend(model, tokenizer, **settings)
    if backend == "vllm":
        from evaluation.backends.vllm import VLLMBackend

        return VLLMBackend(model, tokenizer, **settings)
    raise UserError(f"no backend called {backend!r}{nearest(backend, BACKENDS)}")
