"""A family of tiny untrained models and their data, for trying a command by hand."""

from __future__ import annotations

from pathlib import Path

from bottle.cases import get_case
from bottle.data import write_data
from bottle.tokenizer import load_tokenizer
from bottle.training import Shape, build_model
from checkpoints.writing import write_model
from common.files import staged_directory

CASE = "case1"
_SHAPE = Shape("mistral", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64)
_ROWS = 24  # of calibration and training for each role
_CHANGE = 0.01  # standard deviation of expert minus base; the base's weights have 0.02


def write_family(out: Path, items: int = 8, seed: int = 0) -> list[str]:
    """Write a base, its experts and data with one tokenizer; nothing is trained.

    Args:
        out: Gets `base`, a folder for each expert of case1, and `data`.
        items: Test items of each task, and as many dev items.
        seed: Of the data and of all weights.

    Returns:
        The experts' names.
    """
    import torch

    data = out / "data"
    rows = {"train_rows": _ROWS, "calibration_rows": _ROWS}
    write_data(data, CASE, seed=seed, test_items=items, dev_items=items, **rows)
    model = build_model(_SHAPE, load_tokenizer(data / "tokenizer").get_vocab_size(), seed)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    experts = list(get_case(CASE).experts)
    for name in ("base", *experts):
        if name != "base":
            model.load_state_dict(
                # Noise alone: untrained experts differ as trained ones do, and merge in seconds.
                {key: value + _CHANGE * torch.randn_like(value) for key, value in base.items()}
            )
        with staged_directory(out / name) as folder:
            write_model(folder, model, data / "tokenizer")
    return experts
