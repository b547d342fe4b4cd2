"""The transformers model behind DAM: any Llama-like decoder, with merged or ordinary weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from checkpoints.names import is_linear
from common.errors import UserError
from merges.dam.layers import MergedLinear
from merges.dam.packing import ATTENTION, Packing, packed_attention

AttentionInterface.register(ATTENTION, packed_attention)


class _NormFunction(torch.autograd.Function):
    """RMS normalisation with a frozen gain, in half the passes over memory of the plain formula."""

    @staticmethod
    def forward(ctx, inputs: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.mul_(1 / wide.shape[-1]).add_(epsilon).rsqrt_()
        normal = wide * scale
        ctx.save_for_backward(normal, scale, gain)
        return normal.to(inputs.dtype) * gain

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, gain = ctx.saved_tensors
        wide = (gradient * gain).to(normal.dtype)
        mean = torch.linalg.vecdot(wide, normal).unsqueeze(-1).mul_(-1 / normal.shape[-1])
        return wide.addcmul_(normal, mean).mul_(scale).to(gradient.dtype), None, None


class FrozenRMSNorm(nn.Module):
    """RMSNorm whose gain is not trained.

    Args:
        gain: (hidden,).
        epsilon: Added to the mean square.
    """

    def __init__(self, gain: Tensor, epsilon: float) -> None:
        super().__init__()
        self.gain, self.epsilon = gain, epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (..., hidden)."""
        return _NormFunction.apply(inputs, self.gain, self.epsilon)


# Modules that compute gain * x / sqrt(mean(x^2) + epsilon); Gemma's, which adds 1 to the gain,
# is not among them.
_PLAIN_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def skeleton(config: Mapping[str, Any], attention: str = ATTENTION) -> PreTrainedModel:
    """Build the transformers model of a configuration without allocating weights.

    Args:
        config: The checkpoint's config.json.
        attention: Name of the attention implementation.

    Returns:
        The causal language model in evaluation mode, its parameters on the meta device.

    Raises:
        UserError: transformers knows no such architecture.
    """
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        parsed = AutoConfig.for_model(config.get("model_type", ""), **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(parsed, attn_implementation=attention)
    except ValueError as error:
        raise UserError(
            "the base's config.json describes no causal language model that transformers can "
            f"build ({str(error).splitlines()[0]}); use a Llama or Mistral model"
        ) from None
    for name, module in list(model.named_modules()):
        # Rotary frequencies are buffers, not in the checkpoint: compute them on a true device.
        if list(module.buffers(recurse=False)) and not list(module.parameters(recurse=False)):
            _replace(model, name, type(module)(model.config))
    return model.eval()


class Decoder:
    """The body of a decoder (embedding to final norm), run on packed samples.

    Args:
        config: The checkpoint's config.json.
        tensors: Weights by parameter name; those of merged layers are not needed. They are used
            as they are, without a copy, and stay frozen.
        merged: Merged linear layers by module name, put in place of the ordinary ones.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        merged: Mapping[str, MergedLinear] | None = None,
    ) -> None:
        model = skeleton(config)
        self.body = model.base_model
        prefix = f"{model.base_model_prefix}."
        for name, layer in (merged or {}).items():
            if name.startswith(prefix):
                _replace(self.body, name.removeprefix(prefix), layer)
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        needed = {name for name, _ in self.body.named_parameters()}
        self.body.load_state_dict({name: own[name] for name in needed}, assign=True)
        self.body.requires_grad_(False)
        for name, module in list(self.body.named_modules()):
            if type(module).__name__ in _PLAIN_NORMS:
                norm = FrozenRMSNorm(module.weight.data, module.variance_epsilon)
                _replace(self.body, name, norm)

    def hidden_states(self, ids: Tensor, packing: Packing) -> Tensor:
        """Run the body.

        Args:
            ids: (tokens,), the samples end to end.
            packing: Where each sample lies.

        Returns:
            The final hidden states after the last norm, (tokens, hidden).
        """
        output = self.body(
            input_ids=ids[None],
            position_ids=packing.positions,
            use_cache=False,
            packing=packing,
        )
        return output.last_hidden_state.squeeze(0)


def head_name(config: Mapping[str, Any], names: Sequence[str]) -> str:
    """Name the parameter that maps final hidden states to logits.

    Args:
        config: The checkpoint's config.json.
        names: The checkpoint's parameter names.

    Returns:
        ``lm_head.weight``, or the embedding's name where the two are tied.

    Raises:
        UserError: The checkpoint has neither.
    """
    if "lm_head.weight" in names and not config.get("tie_word_embeddings"):
        return "lm_head.weight"
    tied = [name for name in names if name.endswith("embed_tokens.weight")]
    if not tied or "lm_head.bias" in names:
        raise UserError(
            "DAM needs an output head without bias (lm_head.weight) or one tied to the "
            "embedding (embed_tokens.weight); the base has neither"
        )
    return tied[0]


def merged_layers(
    experts: Sequence[Mapping[str, Tensor]], head: str, merge_head: bool
) -> dict[str, MergedLinear]:
    """Build the merged linear layers of a model.

    Args:
        experts: The experts' weights by parameter name.
        head: Name of the output head's parameter.
        merge_head: Whether an untied output head is merged as well.

    Returns:
        Merged layers by module name, sorted.
    """
    layers = {}
    for name in sorted(experts[0]):
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or not is_linear(name) or (name == head and not merge_head):
            continue
        bias = f"{module}.bias"
        layers[module] = MergedLinear(
            [expert[name] for expert in experts],
            [expert[bias] for expert in experts] if bias in experts[0] else None,
        )
    return layers


def check_head(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], ids: Tensor, decoder: Decoder
) -> None:
    """Refuse an architecture whose logits are more than the final hidden states times the head.

    Args:
        config: The checkpoint's config.json.
        tensors: A checkpoint's weights.
        ids: Some token ids (tokens,) to compare on.
        decoder: The body built from the same weights.

    Raises:
        UserError: The logits differ from those of the transformers model.
    """
    reference = skeleton(config, "eager")
    reference.load_state_dict(dict(tensors), strict=False, assign=True)
    reference.tie_weights()
    with torch.no_grad():
        expected = reference(input_ids=ids[None], use_cache=False).logits[0]
        hidden = decoder.hidden_states(ids, Packing([len(ids)]))
        actual = F.linear(hidden, tensors[head_name(config, list(tensors))])
    spread = expected.abs().max().clamp_min(1)
    tolerance = 1e-3 if actual.dtype in (torch.float32, torch.float64) else 0.1
    if not ((actual - expected).abs().max() / spread) < tolerance:
        raise UserError(
            f"DAM does not know the architecture {config.get('model_type')!r}: its logits are not "
            "the final hidden states times the output head; use a Llama or Mistral model"
        )
