"""What transformers makes of a configuration: the weights, buffers and ties of a model class.

Importing transformers takes seconds, so callers ask only where names and values leave a doubt.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from checkpoints.names import text_part

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# No part of the model: with it, transformers would build other layers.
QUANTISED = "quantization_config"
_MOST = 2048  # layers, heads or experts of a class that is built; published ones have fewer


@dataclass(frozen=True)
class Architecture:
    """A model class, built without values.

    Attributes:
        weights: Names of its parameters and of the buffers that it stores.
        computed: Names of the buffers that it computes and never stores.
        tied: Parameters that are another one, by name, under this configuration.
        ignored: What it leaves unread in a file, searched for in a name; None for nothing.
        prefix: The text before the names of the body in a complete model, such as ``model``.
        linear: Names of its linear layers, the output head included.
        turned: Those of them that keep their weight as [in, out].
    """

    weights: frozenset[str]
    computed: frozenset[str]
    tied: Mapping[str, str]
    ignored: re.Pattern[str] | None
    prefix: str
    linear: frozenset[str] = frozenset()
    turned: frozenset[str] = frozenset()

    def ignores(self, name: str) -> bool:
        """Return whether a stored tensor is left unread: the class computes it or passes over it.

        Files of a bare body lack the prefix, and those of a complete model have it.
        """
        start = f"{self.prefix}."
        forms = {name, f"{start}{name}", name.removeprefix(start)}
        if forms & self.weights:
            return False
        return bool(forms & self.computed) or bool(self.ignored and self.ignored.search(name))


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k != QUANTISED}, sort_keys=True)


def says_quantised(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration has a block on quantisation, which may be a leftover."""
    return bool(config.get(QUANTISED) or text_part(config).get(QUANTISED))


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration's class takes: without its type, and infinity as a number.

    transformers writes numbers that JSON lacks as {"__float__": "Infinity"}.
    """

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {"__float__"}:
                return float(value["__float__"])
            return {key: number(own) for key, own in value.items()}
        return [number(own) for own in value] if isinstance(value, list) else value

    found = {key: number(value) for key, value in config.items() if key != "model_type"}
    # transformers' own classes ask for a tuple where JSON has a list.
    if isinstance(limit := found.get("time_step_limit"), list):
        found["time_step_limit"] = tuple(limit)
    return found


def parsed(config: Mapping[str, Any]) -> PreTrainedConfig | None:
    """Build the configuration's object with all its defaults; None where transformers cannot."""
    return _parsed(_text(config))


@functools.lru_cache(maxsize=32)
def _parsed(text: str) -> PreTrainedConfig | None:
    from transformers import AutoConfig
    from transformers.utils import logging

    settings = json.loads(text)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoConfig.for_model(settings["model_type"], **settings_of(settings))
    except Exception:  # whatever an unknown type or a wrong value makes of it
        return None
    finally:
        logging.set_verbosity(verbosity)


def architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Build a configuration's model class on no device; None where transformers cannot."""
    return _architecture(_text(config))


def _buildable(settings: Mapping[str, Any]) -> bool:
    """Return whether a configuration, which may come from anybody, asks for a bounded class."""
    return all(
        _buildable(value)
        if isinstance(value, dict)
        else not (isinstance(value, int) and re.search("layer|expert|block|depth|num_", key))
        or value <= _MOST
        for key, value in settings.items()
    )


@functools.lru_cache(maxsize=8)
def _architecture(text: str) -> Architecture | None:
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    config = _parsed(text)
    if config is None or not _buildable(json.loads(text)):
        return None
    named = (json.loads(text).get("architectures") or [""])[0]
    known = getattr(transformers, named, None) if isinstance(named, str) else None
    if known is None or not hasattr(known, "_from_config"):
        tables = ("CausalLM", "Seq2SeqLM", "ImageTextToText", "PreTraining")
        autos = [getattr(transformers, f"AutoModelFor{table}") for table in tables]
        known = next((a for a in autos if type(config) in a._model_mapping), None)
    if known is None:
        return None
    try:
        with torch.device("meta"):
            make = getattr(known, "_from_config", None) or known.from_config
            model = make(config)
    except Exception:  # a class that needs what is not there, or a configuration it refuses
        return None
    stored = frozenset(model.state_dict())
    turned = frozenset(n for n, part in model.named_modules() if isinstance(part, Conv1D))
    linear = (n for n, part in model.named_modules() if isinstance(part, torch.nn.Linear))
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    # transformers adds these two for every class that has such a buffer anywhere.
    for end, pattern in (
        ("rotary_emb.inv_freq", r"rotary_emb\.inv_freq"),
        ("position_ids", r"(^|\.)position_ids$"),
    ):
        if any(name.endswith(end) for name in buffers):
            patterns.add(pattern)
    return Architecture(
        stored,
        frozenset(buffers - stored),
        dict(model.all_tied_weights_keys),
        re.compile("|".join(f"({pattern})" for pattern in sorted(patterns))) if patterns else None,
        model.base_model_prefix,
        turned.union(linear),
        turned,
    )


def stacks_experts(config: Mapping[str, Any]) -> bool:
    """Return whether transformers reads one matrix for each expert into [gate; up] and down."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    kinds = (part.get("model_type") for part in (config, text_part(config)))
    for kind in filter(None, kinds):
        for entry in get_checkpoint_conversion_mapping(kind) or ():
            steps = [type(step).__name__ for step in getattr(entry, "operations", ())]
            if steps == ["MergeModulelist", "Concatenate"] and any(
                "gate_up_proj" in target for target in entry.target_patterns
            ):
                return True
    return False
