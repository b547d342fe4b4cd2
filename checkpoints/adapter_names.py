"""How an adapter's file calls a base's parameters, and which weights it holds transposed."""

from __future__ import annotations

import re
from collections.abc import Collection

from checkpoints.adapter_settings import Settings
from checkpoints.reading import Model

# Layers that keep their weight as [in, out]; PEFT finds them by their class, whatever the
# configuration says.
_TURNED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_TURNED_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")
OTHER_HEADS = ("score", "classifier", "qa_outputs", "v_head", "summary")
# How transformers calls a module in memory, and how the files of some models call it: mixtures,
# wrappers of a text model and a tower for pictures, GPT-NeoX, Nemotron-H.
_IN_FILES = (
    (r"\.mlp\.router\.", ".block_sparse_moe.gate."),
    (r"\.mlp\.", ".block_sparse_moe."),
    (r"\.router\.weight$", ".router.layer.weight"),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^lm_head\.", "embed_out."),
    (r"^model\.", "backbone."),
)
# The text model inside a wrapper; without the wrapper's other parts it would be another model.
_INSIDE = ((r"^model\.language_model\.", "model."), (r"^model\.", ""))
_TOWERS = ("visual.", "vision_tower.", "vision_model.", "audio_tower.")

# How files call a separate head, by how the name of the embedding begins.
_HEADS = {
    "gpt_neox.": "embed_out.weight",
    "biogpt.": "output_projection.weight",
    "language_model.": "language_model.lm_head.weight",
}


def separate_head(embedding: str) -> str:
    """Return the name of a separate output head for a model with this tied embedding."""
    found = (head for start, head in _HEADS.items() if embedding.startswith(start))
    return next(found, "lm_head.weight")


def name_in(names: Collection[str], name: str) -> str:
    """Return how a base's files call a parameter that an adapter names as it is in memory."""
    if name in names:
        return name
    rules: tuple[tuple[str, str], ...] = _IN_FILES
    if name.startswith("model.") and any(other.startswith(_TOWERS) for other in names):
        rules += _INSIDE
    for memory, file in rules:
        if (other := re.sub(memory, file, name)) in names:
            return other
    return name


def is_turned(
    base: Model, settings: Settings, module: str, key: str, shape: tuple[int, int]
) -> bool:
    """Say whether a weight is stored as [in, out], the other way round than B A.

    Args:
        base: The adapter's base.
        settings: The adapter's configuration.
        module: The module that is changed.
        key: The name of the first factor in the adapter's file.
        shape: The shape of B A.

    Raises:
        UserError: It cannot be known.
    """
    if ".lora_embedding_" in key:
        return True
    if base.config.get("model_type") in _TURNED_MODELS:
        return module.rsplit(".", 1)[-1] in _TURNED_LAYERS
    if not settings.values.get("fan_in_fan_out"):
        return False
    if shape[0] == shape[1]:
        raise settings.refuse("fan_in_fan_out is set and a square weight fits either way")
    name = f"{module}.weight"
    return name in base.names() and base.shape(name) == shape[::-1]
