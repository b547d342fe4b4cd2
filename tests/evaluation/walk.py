"""Tiny models with random weights of many types of transformers, and what is right for each."""

from __future__ import annotations

import inspect
from typing import Any

import torch

# What most configurations call their sizes; each takes those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 512, "n_inner": None}
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    **{"decoder_sparse_step": 1, "moe_intermediate_size": 16},
    **{"shared_expert_intermediate_size": 16, **MOE},
}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    **{"v_head_dim": 8, "qk_head_dim": 16, "head_dim": 8, "n_routed_experts": 4},
    **{"num_key_value_heads": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    **{"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
}
# Types that read in both directions.
BOTH_WAYS: dict[str, dict[str, Any]] = {
    "bert": {},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_head": 8, "d_inner": 48},
}
# By model type: what its configuration needs besides SIZES; windows are shorter than the texts.
TYPES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1], "mamba_chunk_size": 16},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_head": 4, "n_layer": 2, "seq_length": 512},
    "codegen": {**GPT, "rotary_dim": 4},
    "cohere": {},
    "cohere2": {**MIXED, "head_dim": 8},
    "ctrl": {**GPT, "dff": 48},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "diffllama": {},
    "doge": {},
    "dots1": {**LATENT, "n_shared_experts": 1, "head_dim": 8},
    "ernie4_5": {},
    "exaone4": {**MIXED, "sliding_window_pattern": 2},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 16},
    "falcon_mamba": {"state_size": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, **MIXED},
    "gemma3_text": {"head_dim": 8, **MIXED},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 24,
    },
    "gpt_neox": {},
    "gpt_oss": {"head_dim": 8, **MIXED, **MOE},
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": {},
    "granitemoe": MOE,
    "granitemoehybrid": {
        **MAMBA,
        **MOE,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 16,
        "mamba_chunk_size": 16,
    },
    "helium": {"head_dim": 8},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
        **{"expert_layer_offset": 1, "num_experts": 4, "use_mamba_kernels": False},
        **{"mamba_d_state": 8, "mamba_dt_rank": 4},
    },
    "jetmoe": {**MOE, "kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {
        **{"head_dim": 8, "attention_chunk_size": 24, "intermediate_size_mlp": 48, **MOE},
        **{"layer_types": ["chunked_attention", "full_attention"]},
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "minimax": {
        **{"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
        **{"head_dim": 8, **MOE},
    },
    "ministral": {"sliding_window": 24, "layer_types": None, "head_dim": 8},
    "mistral": {"sliding_window": 24},
    "mixtral": {"sliding_window": 24, **MOE},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 512},
    "nemotron": {},
    "nemotron_h": {
        **{"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8},
        **{"mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 16},
        "head_dim": 8,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": MIXED,
    "olmoe": MOE,
    "openai-gpt": GPT,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 24},
    "phimoe": MOE,
    "qwen2": {**MIXED, "use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {
        **MOE,
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        **MIXED,
        "use_sliding_window": True,
    },
    "qwen3": {"head_dim": 8, **MIXED, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_text": DELTA,
    "qwen3_moe": {**MOE, "moe_intermediate_size": 16, "head_dim": 8},
    "qwen3_next": DELTA,
    "recurrent_gemma": {
        **{"lru_width": 32, "attention_window_size": 24, "head_dim": 8},
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "seed_oss": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": 24},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "zamba2": {
        **{"layers_block_type": ["mamba", "hybrid"], "mamba_ngroups": 1, "mamba_d_state": 8},
        **{"n_mamba_heads": 8, "mamba_headdim": 8, "num_mem_blocks": 1, "chunk_size": 16},
        **{"adapter_rank": 4, "hybrid_layer_ids": [1], "use_mamba_kernels": False},
    },
}


def make(kind: str, seed: int = 0, **more: Any) -> Any:
    """Build a model of a type, with weights large enough that everything read matters."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    cls = CONFIG_MAPPING[kind]
    known = set(inspect.signature(cls.__init__).parameters) | set(
        getattr(cls, "__annotations__", ())
    )
    known |= set(getattr(cls, "attribute_map", ()))
    given = {name: value for name, value in SIZES.items() if name in known}
    config = cls(**given | (TYPES | BOTH_WAYS)[kind] | more)
    torch.manual_seed(seed)
    model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and float(parameter.std()) < 0.1:
                parameter.mul_(0.2 / max(float(parameter.std()), 1e-3))
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.inference_mode()
def plain_loglikelihood(model: Any, before: list[int], after: list[int]) -> float:
    """Sum the log-probabilities of one plain pass in float64."""
    logits = model(torch.tensor([[*before, *after]])).logits[0].double()
    values = logits.log_softmax(-1)[len(before) - 1 : -1]
    return sum(float(values[n, token]) for n, token in enumerate(after))


@torch.inference_mode()
def plain_text(model: Any, tokens: list[int], count: int) -> list[int]:
    """Continue greedily by plain passes over everything, one for each token."""
    tokens, start = list(tokens), len(tokens)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[start:]


def own_text(model: Any, tokens: list[int], count: int) -> list[int]:
    """Continue by transformers' own greedy `generate`."""
    ids = torch.tensor([tokens])
    settings = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
    written = model.generate(ids, max_new_tokens=count, min_new_tokens=count, **settings)
    return written[0, len(tokens) :].tolist()


@torch.inference_mode()
def behind(model: Any, tokens: list[int], written: list[int]) -> float:
    """Return how far the logit of a written token is from the best of a plain pass, at most."""
    logits = model(torch.tensor([[*tokens, *written]])).logits[0, len(tokens) - 1 : -1].float()
    own = logits.gather(1, torch.tensor(written)[:, None])[:, 0]
    return float((logits.max(-1).values - own).max())


def compare(
    kind: str, tokenizer: Any, dtype: torch.dtype = torch.float32, **more: Any
) -> dict[str, Any]:
    """Have the backend score and write with a model of a type, and compare.

    Returns:
        ``kind``; ``error``, the largest in a log-likelihood; ``texts``, whether all are those of
        plain passes; ``behind``, how far written tokens are from their best; ``generate``, whether
        the texts are those of transformers' own; ``score`` and ``write``, the ways taken.
    """
    import numpy as np

    from evaluation.backends.base import Pair, Prompt
    from evaluation.backends.hf import HFBackend

    model = make(kind, **more).to(dtype)
    backend = HFBackend(model, tokenizer, batch_size=4, max_length=256, name=kind)
    draw = torch.Generator().manual_seed(5)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 300, (count,), generator=draw).tolist()

    pairs = []
    for item, length in enumerate((70, 40, 7)):
        before = tokens(length)
        pairs += [Pair(item, before, tokens(count)) for count in (4, 1, 6, 3)]
    scores = backend._score(backend._arrange(pairs), len(pairs))
    expected = [plain_loglikelihood(model, pair.before, pair.after) for pair in pairs]
    prompts = [
        Prompt(np.array(tokens(length), np.int32), (), limit, past_end=True)
        for length, limit in ((65, 4), (18, 9), (30, 2), (6, 7))
    ]
    texts = backend._write(prompts)
    asked = [(model, prompt.tokens.tolist(), prompt.limit) for prompt in prompts]
    ways = backend._ways()
    return {
        "kind": kind,
        "error": max(abs(one - two) for (one, _), two in zip(scores, expected, strict=True)),
        "behind": max(behind(m, p, text) for (m, p, _), text in zip(asked, texts, strict=True)),
        "texts": texts == [plain_text(*one) for one in asked],
        "generate": texts == [own_text(*one) for one in asked],
        "score": ways.score,
        "write": ways.write,
    }
