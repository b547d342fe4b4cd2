"""A path through the layers of several models as one checkpoint of the stock architecture.

Along a path of n steps, step k reads the hidden state h_{k-1}, scaled by s_k > 0, and adds what its
layer finds there:

    h_k = s_k h_{k-1} + f_k(s_k h_{k-1})

where f_k, attention and then the MLP, sees its input only through RMSNorms. With the cumulative
scale S_k = s_1 ... s_k and h_k = S_k u_k this is

    u_k = u_{k-1} + f_k(S_k u_{k-1}) / S_k

An RMSNorm gives S u the same value as u, but for its epsilon: x / sqrt(mean(x^2) + eps). So a
stock layer whose o_proj and down_proj, weights and biases, are divided by S_k carries u_k instead
of h_k: both branches of f_k end in them and are linear there, and what attention adds reaches the
MLP's norm at the scale of u as well. The final norm reads u_n where the path gives S_n u_n, which
is the same again. Nothing else changes, and no class has to know of scales.

What is left is epsilon: at a norm whose input has mean square m (that of u), it counts as eps
instead of eps / S^2, a relative difference of about eps |1 - 1 / S^2| / (2 m) in its output.

LayerNorms do the same, and so do branches that run side by side and branches whose sum is
multiplied by a number. Gemma 2 and 3 have a second norm at the end of each branch, with a gain of
1 + w: there it is this gain that is divided, so that w becomes (1 + w) / S_k - 1. Where a branch
reads the hidden state itself (OLMo 2), none of this holds, and the model is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from checkpoints.checking import check_full_precision
from common.errors import UserError
from merges.engine.depth import PER_LAYER

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Model

_LINEAR = r"\.(?:o_proj|down_proj)\.(?:weight|bias)$"
_NORMS = r"\.post_(?:attention|feedforward)_layernorm\.weight$"
# Pre-norm decoders, each with what its branches end in: linear layers, or norms with a gain of
# 1 + w. A test follows a path with transformers' own layers of each.
ARCHITECTURES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"), _LINEAR),
    **dict.fromkeys(("gemma", "granite", "cohere", "stablelm", "seed_oss", "arcee"), _LINEAR),
    "phi": r"\.(?:dense|fc2)\.(?:weight|bias)$",
    "starcoder2": r"\.(?:o_proj|c_proj)\.(?:weight|bias)$",
    **dict.fromkeys(("gemma2", "gemma3_text"), _NORMS),
}
_LAYER = re.compile(r"(?P<before>.*\blayers\.)(?P<number>\d+)(?P<after>\..+)")
# What a layer computes besides its weights; one configuration speaks for all layers of a model.
_SHARED = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "attention_bias",
    "mlp_bias",
    *("hidden_activation", "layer_norm_eps", "norm_eps", "use_bias", "use_qkv_bias", "qkv_bias"),
    *("use_qk_norm", "qk_layernorm", "use_parallel_residual", "partial_rotary_factor"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    *("logit_scale", "attn_logit_softcapping", "final_logit_softcapping"),
    *("query_pre_attn_scalar", "use_sliding_window", "use_bidirectional_attention"),
)


@dataclass(frozen=True)
class Step:
    """One layer of a path.

    Attributes:
        expert: The model that it is taken from.
        layer: Its number there.
        scale: What the hidden state is multiplied by on its way in; positive.
    """

    expert: str
    layer: int
    scale: float = 1.0


def depth(model: Model) -> int:
    """Return a model's number of decoder layers, by its configuration."""
    return int(model.config["num_hidden_layers"])


def check_stackable(models: Mapping[str, Model]) -> None:
    """Refuse models whose layers cannot be in one model; their numbers of layers may differ.

    Args:
        models: The models by name, at least one.

    Raises:
        UserError: One is none of `ARCHITECTURES`, is quantised, or computes something else than the
            first model, by its configuration or by its parameters' names and shapes.
    """
    from transformers import AutoConfig

    configs, shapes = {}, {}
    for name, model in models.items():
        kind = model.config.get("model_type")
        if kind not in ARCHITECTURES:
            raise UserError(
                f"expert {name} ({model.path}): layers of a {kind!a} model cannot be rearranged; "
                f"give models of type {', '.join(ARCHITECTURES)}"
            )
        check_full_precision(model, f"expert {name} ({model.path})")
        # The class knows the defaults of keys that a configuration leaves out, and older keys.
        configs[name] = AutoConfig.for_model(**model.config).to_dict()
        shapes[name] = {_layer_of(tensor): model.shape(tensor) for tensor in model.names()}
    first = next(iter(models))
    layer = {after: shape for (number, after), shape in shapes[first].items() if number == 0}
    outside = {place: shape for place, shape in shapes[first].items() if place[0] is None}
    for name, model in models.items():
        for field in _SHARED:
            if configs[name].get(field) != configs[first].get(field):
                raise UserError(
                    f"expert {name} ({model.path}): {field} is {configs[name].get(field)!a}, that "
                    f"of {first} is {configs[first].get(field)!a}; layers of one path share it"
                )
        expected = {(n, after): s for n in range(depth(model)) for after, s in layer.items()}
        if odd := shapes[name].items() ^ (outside | expected).items():
            where, part = min((place for place, _ in odd), key=str)
            what = "outside the layers" if where is None else f"in layer {where}"
            raise UserError(
                f"expert {name} ({model.path}): {part.strip('.')} {what} differs in name or shape "
                f"from that of {first}; give models of one architecture and vocabulary"
            )


def kinds(model: Model) -> dict[str, list]:
    """Return what a configuration says of each layer by itself, such as which of them slide."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**model.config)
    found = {key: getattr(config, key, None) for key in PER_LAYER}
    return {k: v for k, v in found.items() if isinstance(v, list) and len(v) == depth(model)}


def _layer_of(tensor: str) -> tuple[int | None, str]:
    """Return a parameter's layer and the name within; None and all of the name outside layers."""
    found = _LAYER.fullmatch(tensor)
    return (None, tensor) if found is None else (int(found["number"]), found["after"])


@dataclass(frozen=True)
class Source:
    """Where a parameter of the new model comes from.

    Attributes:
        model: The model's name.
        tensor: The parameter's name there.
        divisor: What it is divided by: the cumulative scale for what ends a branch, else 1.
        dtype: The type in which it is stored, as safetensors writes it.
        gain: Whether it stands for 1 + itself, which is what is divided.
    """

    model: str
    tensor: str
    divisor: float
    dtype: str
    gain: bool = False


def sources(path: Sequence[Step], outside: str, models: Mapping[str, Model]) -> dict[str, Source]:
    """Say where every parameter of the model that follows a path comes from.

    Layers are renumbered from 0 in the order of the path; a layer that occurs twice is there twice.

    Args:
        path: The steps, at least one, with positive scales.
        outside: The model that embedding, final norm and output head are taken from, and whose
            first layer says in which types the layers are stored.
        models: The models that are named, see `check_stackable`.

    Returns:
        The sources by the parameter's name in the new model, whose ``num_hidden_layers`` is the
        path's length.

    Source:
        Akiba et al., arXiv:2403.13187, section 3.2; the division is derived above.
    """
    found: dict[str, Source] = {}
    within: dict[str, str] = {}
    before = ""
    for name in models[outside].names():
        match = _LAYER.fullmatch(name)
        if match is None:
            found[name] = Source(outside, name, 1.0, models[outside].stored(name))
        elif int(match["number"]) == 0:
            before = match["before"]
            within[match["after"]] = models[outside].stored(name)
    # A scale is folded into the weights, see the top of this file.
    ends = ARCHITECTURES[models[outside].config["model_type"]]
    cumulative = 1.0
    for number, step in enumerate(path):
        cumulative *= step.scale
        for after, dtype in within.items():
            divisor = cumulative if re.search(ends, after) else 1.0
            name = f"{before}{step.layer}{after}"
            source = Source(step.expert, name, divisor, dtype, ends == _NORMS)
            found[f"{before}{number}{after}"] = source
    return found


def load(name: str, source: Source, models: Mapping[str, Model]) -> torch.Tensor:
    """Read a parameter of the new model.

    Args:
        name: Its name there, for messages.
        source: Where it comes from.
        models: The models that are named.

    Returns:
        The values on the CPU, divided and rounded once; undivided they keep every bit.

    Raises:
        UserError: A value overflows the type in which it is stored.
    """
    import torch

    from checkpoints.dtypes import torch_type
    from merges.engine.merger import rounded

    values = models[source.model].load(source.tensor)
    stored = torch_type(source.dtype)
    if source.divisor == 1.0 and values.dtype == stored:
        return values
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    divided = (1 + wide) / source.divisor - 1 if source.gain else wide / source.divisor
    return rounded(divided, stored, name)


def path_table(path: Sequence[Step]) -> str:
    """Write a path as a Markdown table, a row for each layer of the model."""
    lines = ["| layer | expert | its layer | scale | cumulative scale |", "|---|---|---|---|---|"]
    cumulative = 1.0
    for number, step in enumerate(path):
        cumulative *= step.scale
        lines.append(
            f"| {number} | {step.expert} | {step.layer} | {step.scale:.4f} | {cumulative:.4f} |"
        )
    return "\n".join(lines)
