"""The transformers model behind DAM: any Llama-like decoder, with merged or ordinary weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from checkpoints.names import is_linear, kind
from common.errors import UserError
from merges.dam.layers import (
    FrozenRMSNorm,
    MergedEmbedding,
    MergedLayer,
    MergedLinear,
    MergedRMSNorm,
)
from merges.dam.packing import ATTENTION, Packing, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Modules that compute gain * x / sqrt(mean(x^2) + epsilon); Gemma's, which adds 1 to the gain,
# is not among them.
_PLAIN_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")


def _epsilon(norm: Any) -> float:
    if type(norm).__name__ not in _PLAIN_NORMS:
        raise UserError(
            f"DAM cannot merge norms of the class {type(norm).__name__}; leave them unmerged"
        )
    return norm.variance_epsilon


def freeze_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Replace the plain norms within a module by `FrozenRMSNorm`.

    Returns:
        The replaced norms by name, to put back with `set_submodule`.
    """
    plain = {n: m for n, m in module.named_modules() if type(m).__name__ in _PLAIN_NORMS}
    for name, norm in plain.items():
        module.set_submodule(name, FrozenRMSNorm(norm.weight.data, norm.variance_epsilon))
    return plain


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
    # Takes seconds, and checks of an order need only the rest of this file.
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register(ATTENTION, packed_attention)
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
            model.set_submodule(name, type(module)(model.config))
    return model.eval()


class Decoder:
    """The body of a decoder (embedding to final norm), run on packed samples.

    Args:
        config: The checkpoint's config.json.
        tensors: Weights by parameter name; those of merged layers are not needed. They are used
            as they are, without a copy, and stay frozen.
        merged: Merged layers by module name, put in place of the ordinary ones.
        recompute: Whether a decoder layer's activations are computed anew in the backward instead
            of kept (activation checkpointing); the results are the same.

    Attributes:
        device: Where it computes: where the weights are.

    Raises:
        UserError: A norm is to be merged that is not a plain RMSNorm.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        merged: Mapping[str, MergedLayer] | None = None,
        recompute: bool = False,
    ) -> None:
        model = skeleton(config)
        self.body = model.base_model
        prefix = f"{model.base_model_prefix}."
        for name, layer in (merged or {}).items():
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                if isinstance(layer, MergedRMSNorm):
                    layer.epsilon = _epsilon(self.body.get_submodule(name))
                self.body.set_submodule(name, layer)
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        needed = {name for name, _ in self.body.named_parameters()}
        self.body.load_state_dict({name: own[name] for name in needed}, assign=True)
        self.body.requires_grad_(False)
        weights = [*own.values(), *(layer.weights[0] for layer in (merged or {}).values())]
        self.device = weights[0].device
        self.body.to(self.device)  # the rotary frequencies
        freeze_norms(self.body)
        if recompute:
            for layer in self.body.layers:
                layer.forward = partial(
                    checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
                )

    def hidden_states(self, ids: Tensor, packing: Packing) -> Tensor:
        """Run the body.

        Args:
            ids: (tokens,), the samples end to end.
            packing: Where each sample is.

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

    It is ``lm_head.weight``, or the embedding's name where the two are tied.

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
    models: Sequence[Mapping[str, Tensor]],
    head: str,
    merge_head: bool,
    kinds: Collection[str] = (),
) -> dict[str, MergedLayer]:
    """Build the merged layers of a model.

    Args:
        models: Weights by parameter name of the models to merge, in the order of coefficients.
        head: Name of the output head's parameter.
        merge_head: Whether an untied output head is merged as well.
        kinds: Of ``embedding`` and ``norm``, what is merged besides linear layers. An output head
            tied to the embedding follows it.

    Returns:
        Merged layers by module name, sorted.
    """
    classes = {"embedding": MergedEmbedding, "norm": MergedRMSNorm}
    layers: dict[str, MergedLayer] = {}
    for name in sorted(models[0]):
        module, _, leaf = name.rpartition(".")
        # A bias is merged with its weight, and a tied head through the embedding.
        if leaf != "weight" or (name == head and is_linear(name) and not merge_head):
            continue
        weights = [model[name] for model in models]
        if is_linear(name):
            bias = f"{module}.bias"
            biases = [model[bias] for model in models] if bias in models[0] else None
            layers[module] = MergedLinear(weights, biases)
        elif kind(name) in kinds:
            layers[module] = classes[kind(name)](weights)
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
    reference.to(decoder.device)
    ids = ids.to(decoder.device)
    with torch.no_grad():
        expected = reference(input_ids=ids[None], use_cache=False).logits[0]
        hidden = decoder.hidden_states(ids, Packing([len(ids)], ids.device))
        actual = F.linear(hidden, tensors[head_name(config, list(tensors))])
    spread = expected.abs().max().clamp_min(1)
    tolerance = 1e-3 if actual.dtype in (torch.float32, torch.float64) else 0.1
    if not ((actual - expected).abs().max() / spread) < tolerance:
        raise UserError(
            f"DAM does not know the architecture {config.get('model_type')!r}: its logits are not "
            "the final hidden states times the output head; use a Llama or Mistral model"
        )
