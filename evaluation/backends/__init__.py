"""The model classes that answer lm-eval's requests: `hf` and `vllm`, one rule of tokenisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evaluation.backends.base import Backend

BACKENDS = ("hf", "vllm")
# Names under which configurations say how many tokens a model reads at once.
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


def check_max_length(
    max_length: int | None, config: Mapping[str, Any], backend: str, name: str
) -> None:
    """Refuse a context length (in tokens) beyond the one that a model was made for.

    Args:
        max_length: None is always right.
        config: Content of the model's config.json.
        backend: hf or vllm, which needs two more places.
        name: The model's name in the message.

    Raises:
        UserError: The model does not read that many tokens.
    """
    about = config.get("text_config", config)
    made_for = next((about[key] for key in _LENGTHS if key in about), None)
    if max_length is None or made_for is None:
        return
    most = made_for - 2 if backend == "vllm" else made_for
    if max_length > most:
        why = ", less two that vLLM adds" if backend == "vllm" else ""
        raise UserError(
            f"--max-length {max_length}: model {name!r} reads at most {most} tokens "
            f"({made_for} in its config.json{why}); give {most} or less"
        )


def class_of(
    backend: str, model: PreTrainedModel | Path | str, dtype: str, device: str
) -> type[Backend]:
    """Choose the class that serves a model.

    Args:
        backend: hf or vllm; small models of hf on the CPU have a quicker class.
        model: The model or its folder.
        dtype, device: As `HFBackend`.

    Raises:
        UserError: There is no such backend, or the folder is not a model.
    """
    # Imported here: each takes seconds, and vLLM may not be installed.
    if backend == "hf":
        from evaluation.backends.plain import PlainBackend, serves

        if serves(model, dtype, device):
            return PlainBackend
        from evaluation.backends.hf import HFBackend

        return HFBackend
    if backend == "vllm":
        from evaluation.backends.vllm import VLLMBackend

        return VLLMBackend
    raise UserError(f"no backend called {backend!r}{nearest(backend, BACKENDS)}")


def open_backend(
    backend: str,
    model: PreTrainedModel | Path | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    **settings: Any,
) -> Backend:
    """Start a backend with its first model; `serve` gives it the next one.

    Args:
        backend: hf or vllm.
        model: The model's folder; for hf also the model itself.
        tokenizer: The tokenizer that all models share.
        tensor_parallel, data_parallel: Of vllm; see `VLLMBackend`.
        settings: See `HFBackend`.

    Raises:
        UserError: There is no such backend, vLLM is not installed, or the folder is not a model.
    """
    found: Any = class_of(
        backend, model, settings.get("dtype", "float32"), settings.get("device", "cpu")
    )
    if backend == "vllm":
        settings |= {"tensor_parallel": tensor_parallel, "data_parallel": data_parallel}
    return found(model, tokenizer, **settings)
