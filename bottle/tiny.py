"""A family of tiny untrained models and their data, for trying a command by hand.

Neither torch nor transformers' model classes are imported: they would take most of the time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bottle.cases import get_case
from bottle.data import write_data
from bottle.tokenizer import load_tokenizer
from checkpoints.writing import copy_companions
from common.files import staged_directory, write_json

CASE = "case1"
_ROWS = 24  # of calibration and training for each role
_SPREAD = 0.02  # standard deviation of the base's weights, as transformers draws them
_CHANGE = 0.01  # standard deviation of expert minus base
_HIDDEN, _INNER, _LAYERS, _HEADS, _HEAD_DIM = 32, 64, 2, 2, 16
_CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 1,
    "head_dim": _HEAD_DIM,
    "max_position_embeddings": 256,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """List the parameters of a Mistral model of `_CONFIG`."""
    layer = {
        "input_layernorm": (_HIDDEN,),
        "post_attention_layernorm": (_HIDDEN,),
        "self_attn.q_proj": (_HEADS * _HEAD_DIM, _HIDDEN),
        "self_attn.k_proj": (_HEAD_DIM, _HIDDEN),
        "self_attn.v_proj": (_HEAD_DIM, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HEADS * _HEAD_DIM),
        "mlp.gate_proj": (_INNER, _HIDDEN),
        "mlp.up_proj": (_INNER, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INNER),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, _HIDDEN)}
    for number in range(_LAYERS):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (vocabulary, _HIDDEN)}


def write_family(out: Path, items: int = 8, seed: int = 0) -> list[str]:
    """Write a base, its experts and data with one tokenizer; nothing is trained.

    Args:
        out: Gets `base`, a folder for each expert of case1, and `data`.
        items: Test items of each task, and as many dev items.
        seed: Of the data and of all weights.

    Returns:
        The experts' names.
    """
    from safetensors.numpy import save_file

    tokenizer = out / "data/tokenizer"
    write_data(
        out / "data",
        CASE,
        seed=seed,
        test_items=items,
        dev_items=items,
        train_rows=_ROWS,
        calibration_rows=_ROWS,
    )
    vocabulary = load_tokenizer(tokenizer).get_vocab_size()
    draw = np.random.default_rng(seed)

    def noise(shape: tuple[int, ...], spread: float) -> np.ndarray:
        return (spread * draw.standard_normal(shape)).astype(np.float32)

    base = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else noise(shape, _SPREAD)
        for name, shape in _shapes(vocabulary).items()
    }
    experts = list(get_case(CASE).experts)
    for name in ("base", *experts):
        change = 0.0 if name == "base" else _CHANGE
        # Noise alone: untrained experts differ as trained ones do, and merge in seconds.
        weights = {key: value + noise(value.shape, change) for key, value in base.items()}
        with staged_directory(out / name) as folder:
            copy_companions([tokenizer], folder)
            write_json(folder / "config.json", _CONFIG | {"vocab_size": vocabulary})
            # Readers of the format expect this note about the framework.
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return experts
