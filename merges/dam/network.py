"""The transformers model behind DAM: a decoder with merged or ordinary weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checkpoints.names import kind
from common.errors import UserError
from merges.dam.architecture import Architecture, body_name, skeleton
from merges.dam.attention import ATTENTION, SHORT
from merges.dam.layers import (
    MergedEmbedding,
    MergedLayer,
    MergedLinear,
    MergedModule,
    MergedRMSNorm,
)
from merges.dam.norms import FrozenRMSNorm
from merges.dam.packing import Packing
from merges.dam.plain import PlainBody
from merges.dam.products import widen_products

# Modules that compute gain * x / sqrt(mean(x^2) + epsilon); Gemma's, which adds 1 to the gain,
# is not among them.
_PLAIN_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")


def freeze_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Replace the plain norms within a module by `FrozenRMSNorm`.

    Returns:
        The replaced norms by name, to put back with `set_submodule`.
    """
    plain = {n: m for n, m in module.named_modules() if type(m).__name__ in _PLAIN_NORMS}
    for name, norm in plain.items():
        module.set_submodule(name, FrozenRMSNorm(norm.weight.data, norm.variance_epsilon))
    return plain


class Decoder:
    """The body of a decoder (embedding to final norm), run on packed samples.

    Args:
        architecture: The checkpoint's class.
        tensors: Weights by parameter name; those of merged layers are not needed. They are used
            as they are, without a copy, and stay frozen.
        merged: Merged layers by module name, put in place of the ordinary ones.
        recompute: Whether a decoder layer's activations are computed anew in the backward instead
            of kept (activation checkpointing); the results are the same.
        packed: Whether the samples of a row go through the model together. Without it, each goes
            alone, with the class's own attention.

    Attributes:
        device: Where it computes: where the weights are.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        merged: Mapping[str, MergedLayer] | None = None,
        recompute: bool = False,
        packed: bool = True,
    ) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        model = skeleton(architecture.config, ATTENTION if packed else "eager")
        top, self._packed = body_name(model), packed
        self.body, prefix = model.get_submodule(top), f"{top}."
        for name, layer in (merged or {}).items():
            place = architecture.places[name]
            if place.startswith(prefix):
                layer.replace(model.get_submodule(place))
                model.set_submodule(place, layer)
        architecture.fill(model, tensors, [f"{prefix}{name}" for name in self.body.state_dict()])
        weights = [*tensors.values(), *(layer.weights[0] for layer in (merged or {}).values())]
        self.device = weights[0].device
        self.body.to(self.device)  # the rotary frequencies
        freeze_norms(self.body)
        widen_products(self.body)
        self._plain = PlainBody.of(self.body) if packed and not recompute else None
        if recompute:
            for layer in self.body.modules():
                if isinstance(layer, GradientCheckpointingLayer):
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
        if not self._packed:
            rows = (
                self.body(input_ids=own[None], use_cache=False).last_hidden_state.squeeze(0)
                for own in ids.split(list(packing.lengths))
            )
            return torch.cat(list(rows))
        output = self.body(
            input_ids=ids[None],
            position_ids=packing.positions,
            use_cache=False,
            packing=packing,
        )
        return output.last_hidden_state.squeeze(0)

    def states_at(self, ids: Tensor, packing: Packing, rows: Tensor) -> Tensor:
        """Run the body for the states of some tokens.

        Args:
            ids: As for `hidden_states`, as is packing.
            rows: Their places in the row (rows,), each at most once, ascending.

        Returns:
            What `hidden_states` has there, (rows, hidden).
        """
        if self._plain is None or packing.shape[1] > SHORT:
            return self.hidden_states(ids, packing).index_select(0, rows)
        return self._plain.states(ids, packing, None if len(rows) == len(ids) else rows)


def head_name(config: Mapping[str, Any], names: Sequence[str]) -> str:
    """Name the parameter that maps final hidden states to logits, by the names alone.

    It is ``lm_head.weight``, or the embedding's name where the two are tied.

    Raises:
        UserError: The checkpoint has neither.
    """
    if "lm_head.weight" in names and not config.get("tie_word_embeddings"):
        return "lm_head.weight"
    tied = [name for name in names if name.endswith("embed_tokens.weight")]
    if not tied or "lm_head.bias" in names:
        raise UserError(
            "statistics need an output head without bias (lm_head.weight) or one tied to the "
            "embedding (embed_tokens.weight); the model has neither"
        )
    return tied[0]


def _layer(
    module: nn.Module, of: str, weights: Sequence[Tensor], biases: Sequence[Tensor] | None
) -> MergedLayer:
    """Make the merged layer that takes the place of an embedding or a norm."""
    if of == "embedding":
        return MergedEmbedding(weights)
    if type(module).__name__ in _PLAIN_NORMS:
        return MergedRMSNorm(weights, module.variance_epsilon)  # type: ignore[arg-type]
    return MergedModule(weights, biases)


def merged_layers(
    models: Sequence[Mapping[str, Tensor]],
    architecture: Architecture,
    merge_head: bool,
    kinds: Collection[str] = (),
) -> dict[str, MergedLayer]:
    """Build the merged layers of a model.

    Args:
        models: Weights by parameter name of the models to merge, in the order of coefficients.
        architecture: What their class learns.
        merge_head: Whether an untied output head is merged as well.
        kinds: Of ``embedding`` and ``norm``, what is merged besides linear layers. An output head
            tied to the embedding follows it.

    Returns:
        Merged layers by module name, sorted.
    """
    layers: dict[str, MergedLayer] = {}
    for name in sorted(models[0]):
        module, _, leaf = name.rpartition(".")
        linear = architecture.linear.get(module)
        untied = linear is not None and name == architecture.head
        # A bias is merged with its weight, and a tied head through the embedding.
        if leaf != "weight" or (untied and not merge_head):
            continue
        weights = [model[name] for model in models]
        bias = f"{module}.bias"
        biases = [model[bias] for model in models] if bias in models[0] else None
        if linear is not None:
            layers[module] = MergedLinear([w.T if linear else w for w in weights], biases)
        elif kind(name) in kinds:
            own = architecture.model.get_submodule(architecture.places[module])
            layers[module] = _layer(own, kind(name), weights, biases)
    return layers
