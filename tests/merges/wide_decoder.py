"""Tiny random decoders of transformers that compute in float64 throughout."""

from __future__ import annotations

import torch
from torch import nn

VOCABULARY, TOKENS = 24, 10
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
OWN = {
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {**CAPS, "tie_word_embeddings": True, "query_pre_attn_scalar": 5},
    "gemma3_text": {"tie_word_embeddings": True, "query_pre_attn_scalar": 5},
    "gpt_neox": {
        "hidden_size": 32,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
}


class _Norm(nn.Module):
    """A root-mean-square norm in the type of its input."""

    def __init__(self, norm: nn.Module, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = norm.weight, offset
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps

    def forward(self, x):
        scale = (x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()
        return x * scale * (self.weight + self.offset)


def _attention(module, query, key, value, mask, scaling=None, softcap=None, **_):
    repeated = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeated, 1) for x in (key, value))
    scores = query @ key.mT * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


def make(kind: str, seed: int = 0, **changes) -> nn.Module:
    """Build a decoder of random weights, gains and biases, in float64 throughout."""
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register("wide", _attention)
    settings = SIZES | OWN.get(kind, {}) | changes
    if kind == "gpt_neox":
        settings = {k: v for k, v in settings.items() if k not in ("num_key_value_heads",)}
        settings.pop("head_dim")
    config = AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="wide").double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = torch.randn_like(parameter)
                gain = parameter.dim() == 1 and name.endswith("weight")
                parameter.copy_(drawn * 0.3 + parameter if gain else drawn * 0.4)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
            model.set_submodule(name, _Norm(module, offset))
    return model.eval()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's parameters by their names in a checkpoint, a tied head left out."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logits(model: nn.Module, tensors) -> torch.Tensor:
    """Run the model with these weights on fixed tokens, (tokens, vocabulary) in float64."""
    ids = torch.arange(3, 3 + 2 * TOKENS).remainder(VOCABULARY).view(2, TOKENS)
    state = dict(tensors)
    for head, source in model.all_tied_weights_keys.items():
        state.setdefault(head, state[source])
    with torch.no_grad():
        found = torch.func.functional_call(
            model, state, kwargs={"input_ids": ids, "use_cache": False}, tie_weights=False
        )
    return found.logits.flatten(0, 1)


def change(model: nn.Module, before, after) -> float:
    """Return the relative change of the logits from one set of weights to another."""
    old, new = logits(model, before), logits(model, after)
    return float((new - old).norm() / old.norm())
