"""How an adapter's file calls a base's parameters, and which weights it holds transposed."""

from __future__ import annotations

from collections.abc import Collection

from checkpoints.adapter_settings import Settings
from checkpoints.reading import Model

# Layers that keep their weight as [in, out]; PEFT finds them by their class, whatever the
# configuration says.
_TURNED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_TURNED_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")
OTHER_HEADS = ("score", "classifier", "qa_outputs", "v_head", "summary")
# How transformers calls a module in memory, and how the files of some models call it.
_IN_FILES = ((".mlp.", ".block_sparse_moe."),)


def name_in(names: Collection[str], name: str) -> str:
    """Return how a base's files call a parameter that an adapter names as it is in memory."""
    if name in names:
        return name
    for memory, file in _IN_FILES:
        if (other := name.replace(memory, file)) in names:
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
