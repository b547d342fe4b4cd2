"""What a parameter of a decoder is, read from its name, and what its configuration calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["embedding", "norm", "linear", "other"]


def kind(name: str) -> Kind:
    """Classify a parameter of a Llama-like model.

    Args:
        name: The parameter's name in the checkpoint, such as
            ``model.layers.0.self_attn.q_proj.weight``.

    Returns:
        ``linear`` for projections and the output head with their biases, ``embedding`` for the
        input embedding, ``norm`` for normalisation gains, ``other`` for what is none of these.
    """
    module = name.rsplit(".", 1)[0]
    if module.endswith("_proj") or module == "lm_head" or module.endswith(".lm_head"):
        return "linear"
    if is_embedding(name):
        return "embedding"
    if module.endswith("norm") or module.rsplit(".", 1)[-1].startswith("ln_"):
        return "norm"
    return "other"


def is_linear(name: str) -> bool:
    """Return whether a parameter belongs to a linear layer (the output head included)."""
    return kind(name) == "linear"


_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "tok_embeddings",
    "tokens_embed",
)
_HEADS = ("lm_head", "embed_out", "output_projection")
# Those of Mamba, RWKV and CTRL, whose last words alone are those of other modules too.
_IN_FULL = {
    **dict.fromkeys(("backbone.embeddings", "rwkv.embeddings", "transformer.w"), _EMBEDDINGS),
    "head": _HEADS,
}


def _is_one_of(modules: tuple[str, ...], name: str) -> bool:
    module = name.rsplit(".", 1)[0]
    return module.rsplit(".", 1)[-1] in modules or _IN_FULL.get(module) is modules


def is_embedding(name: str) -> bool:
    """Return whether a parameter is an input embedding, a row per token."""
    return _is_one_of(_EMBEDDINGS, name)


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to the output head, a row per token."""
    return _is_one_of(_HEADS, name)


def has_row_per_token(name: str) -> bool:
    """Return whether a parameter is an input embedding or belongs to the output head."""
    return is_embedding(name) or is_head(name)


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says of the text model inside; nothing where it has none."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def with_vocabulary_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a configuration with another number of rows, wherever it says it."""
    changed = dict(config)
    if text := text_part(config):
        changed["text_config"] = text | {"vocab_size": rows}
        if "vocab_size" not in config:
            return changed
    return changed | {"vocab_size": rows}
