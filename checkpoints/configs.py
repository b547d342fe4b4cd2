"""Configurations compared as transformers builds them, whatever their spelling and defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from checkpoints.architecture import QUANTISED, parsed
from checkpoints.names import text_part
from checkpoints.stored import TIE

# Keys that change no value of a forward pass, or that are compared elsewhere: the vocabulary with
# the tokenizers, ties with the heads, types with the tensors.
_SILENT = re.compile(
    r"_.*|.*dropout|.*pdrop|.*_version|output_.*|return_.*|.*initializer.*|init_.*|.*aux_loss.*"
    r"|(bos|eos|pad|sep|unk|mask|decoder_start|forced_.*)_token_id|transformers\..*|unsloth.*"
    rf"|architectures|auto_map|dtype|torch_dtype|use_cache|{TIE}|{QUANTISED}|vocab_size|id2label"
    r"|label2id|num_labels|problem_type|chunk_size_feed_forward|gradient_checkpointing|model_type"
    r"|task_specific_params|is_decoder|use_return_dict|language|tokenizer_class|pretraining_tp"
    r"|finetuning_task|prefix|attn_implementation|torchscript|use_bfloat16|name_or_path|jitter_noise"
)
_SYNONYMS = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_accurate": "gelu_new"}
_OLD_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")


def usual(value: object) -> object:
    """Return the usual name of an activation that has several; any other value as it is."""
    return _SYNONYMS.get(value, value) if isinstance(value, str) else value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what counts, nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str) or _SILENT.fullmatch(key):
            continue
        # Layers by number and the like are one value; models and rope inside have keys of theirs.
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = usual(value)
    return found


def _rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's settings with one spelling of its rotary embedding, the newer one."""
    found = {key: value for key, value in settings.items() if key not in _OLD_ROPE}
    for key, value in found.items():
        if isinstance(value, dict):
            found[key] = _rope(value)
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return dict(settings)
    rope = dict(rope)
    theta = rope.pop("rope_theta", settings.get("rope_theta"))
    kind = rope.pop("rope_type", rope.pop("type", None))
    rope.pop("type", None)
    if any(isinstance(value, dict) for value in rope.values()):  # one for each type of layer
        rope = {key: _rope({"rope_parameters": value}) for key, value in rope.items()}
    elif theta is not None or kind not in (None, "default") or rope:
        rope |= {"rope_type": kind or "default"}
        rope |= {} if theta is None else {"rope_theta": theta}
    return found | ({"rope_parameters": rope} if rope else {})


def _filled(settings: dict[str, Any]) -> dict[str, Any]:
    """Return flattened settings with a head's size where it follows from the others."""
    for key in [key for key in settings if key.endswith("hidden_size")]:
        start = key.removesuffix("hidden_size")
        heads = settings.get(f"{start}num_attention_heads")
        if settings.get(f"{start}head_dim") is None and isinstance(heads, int) and heads:
            width = settings[key]
            settings[f"{start}head_dim"] = width // heads if isinstance(width, int) else None
    return settings


def _as_built(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a configuration's flattened settings with all defaults, by transformers' classes."""
    built = parsed(config)
    if built is None:
        return None
    settings = json.loads(json.dumps(built.to_dict(), default=str))
    for other, own in getattr(built, "attribute_map", {}).items():  # such as GPT-2's n_head
        if own in settings:
            settings[other] = settings.pop(own)
    return _filled(_flat(_rope(settings)))


def config_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two configurations, as transformers builds them.

    Configurations that are equal but for keys without effect and the spelling of the rotary
    embedding need no transformers. Of types that transformers does not know, only what both say is
    compared, and the rotary embedding.

    Args:
        ours: The base's config.json.
        theirs: The expert's.

    Returns:
        By dotted key the values of both, ours first; None for one that is not said.
    """
    written = [_filled(_flat(_rope(config))) for config in (ours, theirs)]
    if written[0] == written[1]:
        return {}
    built = [_as_built(config) for config in (ours, theirs)]
    if built[0] is not None and built[1] is not None:
        # A key that only one has is none of the class's.
        return _differing(built[0], built[1], built[0].keys() & built[1].keys() | _ropes(built))
    first, second = written
    return _differing(first, second, first.keys() & second.keys() | _ropes(written))


def says(config: Mapping[str, Any], field: str) -> bool:
    """Return whether a configuration gives a field, by this name or by its type's own."""
    parts = [config, text_part(config)]
    names = {field}
    for part in parts:
        built = parsed(part) if "model_type" in part else None
        names.add(getattr(built, "attribute_map", {}).get(field, field))
    return any(part.get(name) is not None for part in parts for name in names)


def _ropes(settings: Sequence[Mapping[str, Any] | None]) -> set[str]:
    return {key for each in settings for key in each or () if "rope_parameters." in key}


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], keys: set[str]
) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (first.get(key), second.get(key)) for key in sorted(keys)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
