"""What a transformers class makes of a configuration: which layers are learned, and its head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.architecture import parsed, settings_of
from checkpoints.names import text_part
from common.errors import UserError, reason_of
from merges.dam.attention import ATTENTION, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a mixture of experts calls the module that chooses among them.
_ROUTERS = ("experts", "gate", "router")
_FAR = 1000.0  # a logit far beyond where a cap bends it


def skeleton(config: Mapping[str, Any], attention: str = ATTENTION) -> PreTrainedModel:
    """Build the transformers model of a configuration without allocating weights.

    Args:
        config: The checkpoint's config.json.
        attention: Name of the attention implementation.

    Returns:
        The causal language model in evaluation mode, its parameters on the meta device, its
        computed buffers on the CPU.

    Raises:
        UserError: transformers knows no such architecture, or it is not a text model alone.
    """
    # Takes seconds, and checks of an order need only the rest of this file.
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register(ATTENTION, packed_attention)
    if text_part(config):
        raise UserError(
            f"the base is a {config.get('model_type')!r} model, text with pictures or sound; DAM "
            "and AdaMerging learn text models: save its language model in a separate folder first"
        )
    try:
        found = AutoConfig.for_model(config.get("model_type", ""), **settings_of(config))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found, attn_implementation=attention)
    except Exception as error:  # whatever a class makes of a wrong value
        raise UserError(
            "the base's config.json describes no causal language model that transformers can "
            f"build ({reason_of(error)}); use another base, or a method without data"
        ) from None
    _compute_buffers(model)
    return model.eval()


def _compute_buffers(model: PreTrainedModel) -> None:
    """Give the buffers that no checkpoint holds, such as rotary frequencies, their values."""
    stored = set(model.state_dict())
    computed = [name for name, _ in model.named_buffers() if name not in stored]
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in computed}
    for name, module in owners.items():
        leaf = name.rpartition(".")[2]
        empty = torch.zeros_like(module._buffers[leaf], device="cpu")
        # NaN, so that what the class leaves as it is would be noticed.
        module._buffers[leaf] = empty / 0 if empty.is_floating_point() else empty
    # First by the modules that have them, then, for some classes, by a module above.
    for modules in (set(owners.values()), model.modules()):
        for module in modules:
            model._init_weights(module)  # parameters are on the meta device and stay there
        left = [name for name in computed if model.get_buffer(name).isnan().any()]
        if not left:
            return
    raise UserError(
        f"DAM cannot compute {left[0]} of a {model.config.model_type!r} model; merge it with a "
        "method without data"
    )


def _converted(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], lacking: Collection[str]
) -> dict[str, Tensor]:
    """Stack and rename weights as transformers does on reading a file (experts, above all)."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    try:
        whole, info = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=dict(tensors),
            dtype=dtype,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    if invented := sorted(set(info["missing_keys"]) & set(lacking)):
        raise UserError(
            f"DAM finds no tensor for {invented[0]} of a {model.config.model_type!r} model; "
            "write the checkpoint again with transformers (from_pretrained, save_pretrained)"
        )
    state = whole.state_dict()
    device = next(iter(tensors.values())).device
    return {name: state[name].to(device) for name in lacking}


def in_experts(name: str, names: Collection[str]) -> bool:
    """Return whether a parameter or module belongs to a mixture's experts or to their router.

    Args:
        name: Its name.
        names: All names of the model; a router is a ``gate`` in a module that has ``experts``.
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part in _ROUTERS:
            before = ".".join([*parts[:place], "experts"])
            if part == "experts" or any(other.startswith(before) for other in names):
                return True
    return False


class _Outputs(tuple):
    """What a body returns, with hidden states and nothing else."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


class _NoProduct(nn.Identity):
    """In place of a head: passes on what would be its product; some classes read its type."""

    weight = torch.zeros(())


class _Given(nn.Module):
    """In place of a model's body: returns hidden states that it was given before."""

    hidden: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        # Some classes call a decoder inside their body, some read its numbers.
        self.__dict__ |= {"decoder": self, "body": body}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["body"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Outputs((self.hidden[None],))


def body_name(model: PreTrainedModel) -> str:
    """Return the name of a model's body, from embedding to final norm."""
    prefix = model.base_model_prefix
    return prefix if hasattr(model, prefix) else "model"


def _without_body(model: PreTrainedModel, head: str, module: nn.Module) -> Any:
    """Return the class's own way from hidden states (tokens, hidden) to logits, with this head."""
    shell, body = copy.copy(model), body_name(model)
    given = _Given(model.get_submodule(body))
    shell._modules = {**model._modules, body: given, head: module}

    def logits(hidden: Tensor) -> Tensor:
        given.hidden = hidden
        try:
            return shell(use_cache=False).logits[0]
        except Exception as error:  # whatever a class makes of a body that is not there
            raise UserError(
                f"DAM does not know what a {model.config.model_type!r} model makes of its final "
                f"hidden states ({reason_of(error)}); merge it with a method without data"
            ) from None
        finally:
            del given.hidden

    return logits


@dataclass(frozen=True)
class Architecture:
    """A model class, and how a checkpoint names what is learned of it.

    Attributes:
        config: The checkpoint's config.json.
        names: The checkpoint's tensors.
    """

    config: Mapping[str, Any]
    names: frozenset[str]

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Collection[str]) -> Architecture:
        """Describe a checkpoint, its configuration as transformers completes it."""
        return cls(config, frozenset(names))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The class, with parameters on the meta device; not to be changed."""
        return skeleton(self.config, "eager")

    @cached_property
    def stored(self) -> dict[str, str]:
        """The checkpoint's names of the class's weights, but for those that are converted."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        state = self.model.state_dict()
        found = {name: name for name in self.names if name in state}
        if len(found) < len(self.names):
            steps = get_model_conversion_mapping(self.model)
            converters = [step for step in steps if isinstance(step, WeightConverter)]
            renamings = [step for step in steps if not isinstance(step, WeightConverter)]
            prefix = body_name(self.model)
            for name in self.names - set(found):
                own, converter = rename_source_key(name, renamings, converters, prefix, state)
                if converter is None and own in state:
                    found.setdefault(own, name)
        return found

    @cached_property
    def places(self) -> dict[str, str]:
        """The class's names of modules by the checkpoint's."""
        return {
            name.rpartition(".")[0]: own.rpartition(".")[0] for own, name in self.stored.items()
        }

    def fill(
        self, model: PreTrainedModel, tensors: Mapping[str, Tensor], needed: Collection[str]
    ) -> None:
        """Give a skeleton weights, without a copy where the checkpoint holds them as they are.

        Args:
            model: The skeleton; what is not needed stays without values.
            tensors: The checkpoint's weights by name.
            needed: Names in the model.

        Raises:
            UserError: The checkpoint lacks one.
        """
        names = {own: name for own, name in self.stored.items() if name in tensors}
        direct = {own: tensors[names[own]] for own in needed if own in names}
        for own, source in model.all_tied_weights_keys.items():
            if own in needed and own not in direct and source in direct:
                direct[own] = direct[source]
        if lacking := set(needed) - set(direct):
            direct |= _converted(model, tensors, lacking)
        model.load_state_dict(direct, strict=False, assign=True)
        model.requires_grad_(False)

    def about(self, *keys: str) -> Any:
        """Return a value of the completed configuration under the first key that it knows."""
        found = parsed(self.config)
        return next((v for key in keys if (v := getattr(found, key, None)) is not None), None)

    @cached_property
    def experts(self) -> frozenset[str]:
        """The checkpoint's tensors that are experts' or routers'."""
        return frozenset(name for name in self.names if in_experts(name, self.names))

    @cached_property
    def linear(self) -> dict[str, bool]:
        """Names of the linear layers outside a mixture's experts, and whether each is transposed.

        Raises:
            UserError: The checkpoint names one otherwise.
        """
        from transformers.pytorch_utils import Conv1D

        modules = dict(self.model.named_modules())
        tied = f"{self._head_module}.weight" in self.model.all_tied_weights_keys
        found = {}
        for name, module in modules.items():
            if not isinstance(module, nn.Linear | Conv1D) or in_experts(name, modules):
                continue
            if tied and name == self._head_module:
                continue
            if stored := self.stored.get(f"{name}.weight"):
                found[stored.rpartition(".")[0]] = isinstance(module, Conv1D)
            else:
                raise UserError(
                    f"DAM finds no tensor {name}.weight in the base, a "
                    f"{self.config.get('model_type')!r} model; write the checkpoint again with "
                    "transformers (from_pretrained, save_pretrained)"
                )
        return found

    @cached_property
    def _head_module(self) -> str:
        head = self.model.get_output_embeddings()
        for name, module in self.model.named_children():
            if module is head and isinstance(module, nn.Linear):
                return name
        raise UserError(
            f"DAM finds no output head in a {self.config.get('model_type')!r} model; use a causal "
            "language model"
        )

    @cached_property
    def head(self) -> str:
        """Name of the parameter that maps final hidden states to logits.

        Raises:
            UserError: The checkpoint has none.
        """
        own = f"{self._head_module}.weight"
        tied = self.model.all_tied_weights_keys.get(own)
        found = self.stored.get(own if tied is None else tied)
        if found is None:
            raise UserError(
                f"DAM needs an output head ({own}) or one tied to the embedding; the base has "
                "neither"
            )
        return found

    @cached_property
    def head_bias(self) -> str | None:
        """Name of the head's bias, None where it has none."""
        return self.stored.get(f"{self._head_module}.bias")

    @cached_property
    def finish(self) -> Callable[[Tensor], Tensor] | None:
        """What the class makes of the head's product, such as a scale or a cap; None for nothing.

        It is the forward of the class itself with nothing before the product and nothing in it.
        """
        finish = _without_body(self.model, self._head_module, _NoProduct())
        probe = torch.linspace(-_FAR, _FAR, 1001)[None]
        return None if torch.equal(finish(probe), probe) else finish

    def class_logits(self, hidden: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of hidden states (tokens, hidden) by the class's own forward."""
        weight = tensors[self.head]
        outputs, inputs = weight.shape
        head = nn.Linear(inputs, outputs, bias=self.head_bias is not None, device="meta")
        state = {"weight": weight}
        if self.head_bias is not None:
            state["bias"] = tensors[self.head_bias]
        head.load_state_dict(state, assign=True)
        return _without_body(self.model, self._head_module, head)(hidden)

    def logits(self, hidden: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute the same as DAM does: product, bias, and what the class makes of it."""
        bias = None if self.head_bias is None else tensors[self.head_bias]
        product = F.linear(hidden, tensors[self.head], bias)
        return product if self.finish is None else self.finish(product)

    def parameters_of(self, modules: Collection[str]) -> Iterator[str]:
        """Yield the checkpoint's tensors of some modules."""
        for module in modules:
            for leaf in ("weight", "bias"):
                if (name := f"{module}.{leaf}") in self.names:
                    yield name

    @cached_property
    def held_back(self) -> frozenset[str]:
        """Tensors of learned layers but the head, which few trainings look at in the base."""
        return frozenset(self.parameters_of(set(self.linear) - {self.head.rpartition(".")[0]}))
