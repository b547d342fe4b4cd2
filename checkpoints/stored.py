"""What of a model file is a weight: not what its loader computes, ties, or no longer needs.

Names, shapes and values decide, so that reading a model imports neither torch nor transformers;
only a tied configuration that leaves its tie to the class's default asks for the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from checkpoints.architecture import QUANTISED, architecture, parsed, says_quantised
from checkpoints.dtypes import FLOATS
from checkpoints.names import is_embedding, is_head, text_part

TIE = "tie_word_embeddings"
_COMPARED_AT_ONCE = 1 << 22  # values
_MASKED = -1e4  # what attention adds to a masked score, or less
_MASKS = ("attn", "attention", "self_attn", "crossattention", "self_attention")
# Ends of names that only quantised weights have, by the writers of GPTQ, AWQ, bitsandbytes, FP8,
# MXFP4, compressed-tensors and HQQ.
_QUANTISED_PARTS = {
    *("qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "input_scale"),
    *("weight_packed", "weight_shape", "weight_zero_point", "absmax", "nested_absmax"),
    *("quant_map", "nested_quant_map", "SCB", "weight_format", "W_q"),
    *("gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_scales"),
}


class Tensors(Protocol):
    """What is asked of a model (`checkpoints.reading.Model`, which this file serves)."""

    config: dict[str, Any]

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape."""

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read."""

    def count(self, name: str) -> int:
        """Return a parameter's number of values."""

    def read_array(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read some consecutive values, bfloat16 as its patterns."""


@dataclass(frozen=True)
class Reading:
    """How a model folder is read.

    Attributes:
        config: Its configuration as it holds for the weights that are read.
        hidden: Stored tensors that are no weights.
        copies: Of these, the ones that equal a weight to which they are tied, with its name.
        notes: What differs from the folder's files, a sentence each without a stop.
    """

    config: dict[str, Any]
    hidden: frozenset[str] = frozenset()
    copies: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _values(model: Tensors, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read some values of a parameter as float64."""
    array = model.read_array(name, start, stop)
    if model.dtype(name) == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def _is_frequencies(model: Tensors, name: str) -> bool:
    if len(model.shape(name)) != 1 or model.dtype(name) not in FLOATS or not model.count(name):
        return False
    values = _values(model, name)
    return bool((values >= 0).all() and values[0] <= 1 and (np.diff(values) <= 0).all())


def _is_turns(model: Tensors, name: str) -> bool:
    shape = model.shape(name)  # cosines or sines, by position in the last dimension but one
    return len(shape) in (2, 4) and bool((np.abs(_values(model, name)) <= 1).all())


def _is_mask(model: Tensors, name: str) -> bool:
    shape = model.shape(name)
    if len(shape) != 4 or shape[:2] != (1, 1) or shape[2] != shape[3] or not shape[2]:
        return False
    size = shape[2]
    first, last = _values(model, name, 0, size), _values(model, name, size * (size - 1))
    # Later positions are hidden from the first, and none from the last.
    return bool(first[0] == 1 and not first[1:].any() and (last == 1).all())


def _is_masked_score(model: Tensors, name: str) -> bool:
    return model.count(name) == 1 and bool(_values(model, name)[0] <= _MASKED)


def _is_row_of_integers(model: Tensors, name: str) -> bool:
    count = model.count(name)
    return model.dtype(name) not in FLOATS and model.shape(name) in ((count,), (1, count))


def _is_positions(model: Tensors, name: str) -> bool:
    if not _is_row_of_integers(model, name):
        return False
    return bool((_values(model, name) == np.arange(model.count(name))).all())


def _is_zeros(model: Tensors, name: str) -> bool:
    return _is_row_of_integers(model, name) and not _values(model, name).any()


_BUFFERS: dict[str, Callable[[Tensors, str], bool]] = {
    "inv_freq": _is_frequencies,
    "original_inv_freq": _is_frequencies,
    "cos_cached": _is_turns,
    "sin_cached": _is_turns,
    "masked_bias": _is_masked_score,
    "causal_mask": _is_mask,
    "position_ids": _is_positions,
    "token_type_ids": _is_zeros,
}


def _is_computed(model: Tensors, name: str) -> bool:
    """Return whether a tensor is a buffer that every loader computes, by name and values."""
    path = name.split(".")
    if path[-1] == "bias" and len(path) > 1 and path[-2] in _MASKS:
        return _is_mask(model, name)  # a true bias is a vector
    if path[-2:] == ["rope", "freqs"]:
        return _is_frequencies(model, name)
    known = _BUFFERS.get(path[-1])
    return known is not None and known(model, name)


def equal_tensors(model: Tensors, one: str, other: str) -> bool:
    """Return whether two parameters of a model have equal shapes and values."""
    if model.shape(one) != model.shape(other):
        return False
    same = model.dtype(one) == model.dtype(other)
    for start in range(0, model.count(one), _COMPARED_AT_ONCE):
        stop = min(start + _COMPARED_AT_ONCE, model.count(one))
        read = model.read_array if same else lambda *place: _values(model, *place)
        if not np.array_equal(read(one, start, stop), read(other, start, stop)):
            return False
    return True


def says_tied(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration ties the output head to the embedding.

    Where it leaves this out, the class's default counts; for a class that transformers does not
    know, the text model's word, or else no.
    """
    if isinstance(config.get(TIE), bool):
        return config[TIE]
    built = parsed(config) if "model_type" in config else None
    if built is not None:
        return bool(getattr(built, TIE, False))
    return bool(text_part(config).get(TIE))


def with_tie(config: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Return a configuration that says whether the head is tied, wherever it says it."""
    changed = {**config, TIE: tied}
    text = text_part(config)
    if isinstance(text.get(TIE), bool):
        changed["text_config"] = {**text, TIE: tied}
    return changed


def head_and_embedding(model: Tensors) -> tuple[str, str] | None:
    """Return the only output head and the only embedding, where a model stores one of each."""
    heads = [name for name in model.names() if is_head(name) and name.endswith(".weight")]
    embeddings = [name for name in model.names() if is_embedding(name)]
    if len(heads) != 1 or len(embeddings) != 1 or any(map(_is_shared, model.names())):
        return None
    return heads[0], embeddings[0]


def _is_shared(name: str) -> bool:
    return name.split(".")[-2:] == ["shared", "weight"]


def _shared(model: Tensors) -> list[str]:
    """Return parameters that may be copies of another one: heads, embeddings, T5's ``shared``."""
    return [
        name for name in model.names() if is_head(name) or is_embedding(name) or _is_shared(name)
    ]


def _copies(model: Tensors) -> dict[str, str]:
    """Return what an architecture with several embeddings ties, where the values agree.

    Returns:
        The tied parameters, each with the one that it equals.
    """
    names = _shared(model)
    twins = {
        (one, other)
        for place, one in enumerate(names)
        for other in names[place + 1 :]
        if equal_tensors(model, one, other)
    }
    built = architecture(model.config) if twins else None
    if built is None:
        return {}
    pairs = twins | {(other, one) for one, other in twins}
    return {one: other for one, other in pairs if built.tied.get(one) == other}


def is_quantised(model: Tensors) -> bool:
    """Return whether the tensors, whatever the configuration says, are of a quantised model."""
    return any(
        name.rsplit(".", 1)[-1] in _QUANTISED_PARTS
        or ".quant_state." in name
        or (model.dtype(name) not in FLOATS and name.endswith("weight"))
        for name in model.names()
    )


def _full_precision(model: Tensors, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drop a block that a quantising program left in a configuration of ordinary tensors."""
    if not says_quantised(config) or is_quantised(model):
        return config, []
    return without_quantisation(config), [
        f"{QUANTISED} in its config.json is a leftover (no tensor is quantised) and is left out"
    ]


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without its block on quantisation, wherever it is."""
    changed = {key: value for key, value in config.items() if key != QUANTISED}
    if text := text_part(config):
        changed["text_config"] = {key: value for key, value in text.items() if key != QUANTISED}
    return changed


def reading_of(model: Tensors) -> Reading:
    """Find out how a model folder is to be read.

    Args:
        model: The folder with every stored tensor and its configuration as it is written.

    Raises:
        UserError: A weight file ends too early.
    """
    config, notes = _full_precision(model, dict(model.config))
    hidden = {name for name in model.names() if _is_computed(model, name)}
    if hidden:
        notes.append(
            f"{len(hidden)} computed buffer{'s' * (len(hidden) > 1)} (such as {min(hidden)}) "
            "left out: loaders compute them"
        )
    pair = head_and_embedding(model)
    if pair is None:
        copies = _copies(model) if len(_shared(model)) > 1 else {}
        return Reading(config, frozenset(hidden | copies.keys()), copies, tuple(notes))
    head, embedding = pair
    copies = {}
    if model.shape(head) == model.shape(embedding) and says_tied(config):
        if equal_tensors(model, head, embedding):
            copies = {head: embedding}
        else:
            config = with_tie(config, False)
            notes.append(
                f"{head} differs from {embedding}, though config.json ties them; read as untied"
            )
    return Reading(config, frozenset(hidden | copies.keys()), copies, tuple(notes))
