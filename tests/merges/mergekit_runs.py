"""mergekit's own program beside ours: settings, tiny models, and both programs' results."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merges.cli import main

PROGRAM = os.environ.get("BOTTLE_MERGEKIT")
needs_mergekit = pytest.mark.skipif(
    not PROGRAM, reason="BOTTLE_MERGEKIT is not set to the path of mergekit-yaml 0.1.5"
)

ARCHITECTURES = ("llama", "mistral")
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
EXPERTS = ("ja", "math", "sql")
RUNNER = """
import json, sys
import torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

torch.set_num_threads(1)
options = MergeOptions(quiet=True, write_model_card=False, random_seed=5)
for source, out in json.load(open(sys.argv[1])):
    with open(source) as file:
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    run_merge(config, out, options)
"""
U_SHAPE = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]


def models(*parameters: dict[str, Any] | None, **top: Any) -> dict[str, Any]:
    """A configuration of the first experts with these parameters."""
    listed = [
        {"model": name} | ({"parameters": own} if own else {})
        for name, own in zip(EXPERTS, parameters, strict=False)
    ]
    return {"models": listed, **top}


def weights(*numbers: float, **top: Any) -> dict[str, Any]:
    return models(*({"weight": number} for number in numbers), **top)


def sparse(*pairs: Sequence[float], **parameters: Any) -> dict[str, Any]:
    """Weights, densities, and where given what follows, with the base."""
    words = [w for w in ("weight", "density", parameters.pop("third", None)) if w]
    each = [dict(zip(words, pair, strict=False)) for pair in pairs]
    return models(*each, base_model="base", parameters=parameters)


def slices(*parts: tuple[int, int, dict[str, Any]], sources: dict[str, Any], **top: Any) -> dict:
    return {
        "slices": [
            {
                "sources": [
                    {"model": name, "layer_range": [first, end]}
                    | ({"parameters": own} if own else {})
                    for name, own in sources.items()
                ],
                "parameters": parameters,
            }
            for first, end, parameters in parts
        ],
        **top,
    }


WHOLE = [  # density 1 leaves nothing to chance
    sparse((1.0, 1.0), (0.5, 1.0), (0.7, 1.0)),
    sparse((0.4, 1.0), (0.3, 1.0), normalize=True),
    sparse((1.0, 1.0), (0.6, 1.0), (0.2, 1.0), **{"lambda": [0.2, 1.5], "normalize": False}),
]
BANDS = [
    sparse((1.0, 0.5, 0.1), (0.5, 0.3, 0.02), (0.7, 0.75, 0.0), third="gamma"),
    sparse((0.4, 0.3), (0.3, 0.3), **{"lambda": 1.5}),
    sparse((1.0, 0.25), (0.6, 0.25), (0.2, 0.25), gamma=0.0, normalize=True, rescale=True),
]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [
        weights(0.3, 0.5, 0.2),
        weights(0.7, -0.2, 0.6, parameters={"normalize": False}),
        models(
            {"weight": U_SHAPE}, {"weight": 0.4}, base_model="base", parameters={"weight": 0.25}
        ),
        slices(
            (0, 1, {"weight": 0.3}),
            (1, 4, {}),
            sources={"ja": {}, "math": {"weight": [0.1, 0.9]}},
            parameters={"weight": [{"filter": "norm", "value": "2e-1"}, {"value": 0.6}]},
        ),
    ],
    "slerp": [
        {**models({}, {}), "base_model": "math", "parameters": {"t": 0.3}},
        {**models({}), "base_model": "base", "parameters": {"t": U_SHAPE}},
        slices(
            (0, 2, {"t": [0.1, 0.9]}),
            (2, 4, {}),
            sources={"base": {}, "sql": {}},
            base_model="base",
            parameters={"t": [{"filter": "mlp", "value": [0.8, 0.2]}, {"value": 0.4}]},
        ),
    ],
    "nuslerp": [
        weights(0.3, 0.7),
        weights(0.5, 0.8, base_model="base", parameters={"nuslerp_flatten": False}),
        models(
            {"weight": [0, 1]},
            {"weight": 0.6},
            base_model="base",
            parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True},
        ),
    ],
    "multislerp": [
        weights(1.0, 0.5, 0.7),
        weights(0.2, 0.3, 0.4, base_model="base"),
        weights(
            0.4, 0.7, base_model="base", parameters={"normalize_weights": False, "eps": "1e-6"}
        ),
    ],
    "karcher": [
        models({}, {}, {}),
        models({}, {}, parameters={"max_iter": 2}),
        models({}, {}, base_model="base", parameters={"tol": 1e-4}),
    ],
    "model_stock": [
        models({}, {}, {}, base_model="base"),
        models({}, {}, {}, base_model="base", parameters={"filter_wise": True}),
        slices(
            (0, 3, {"filter_wise": True}),
            (3, 4, {}),
            sources={"base": {}, "ja": {}, "math": {}},
            base_model="base",
        ),
    ],
    "task_arithmetic": [
        weights(0.4, 0.3, 0.6, base_model="base"),
        weights(0.4, -0.3, base_model="base", parameters={"lambda": [0.1, 1.2, 0.4]}),
        models(
            {"weight": U_SHAPE}, {"weight": 0.4}, base_model="base", parameters={"normalize": 1}
        ),
    ],
    "ties": [
        sparse((1.0, 0.5), (1.0, 0.5), (1.0, 0.5)),
        sparse((0.3, 0.3), (0.5, 0.5), (0.7, 0.7), int8_mask=True),
        sparse((0.6, 0.25), (0.4, 1.0), **{"normalize": False, "lambda": 1.3}),
    ],
    "breadcrumbs": BANDS,
    "breadcrumbs_ties": BANDS,
    "sce": [
        models({}, {}, {}, base_model="base"),
        models({}, {}, {}, base_model="base", parameters={"select_topk": 0.5}),
        models({}, {}, base_model="base", parameters={"select_topk": 0.2}),
    ],
    "nearswap": [
        models({}, base_model="base", parameters={"t": 0.05}),
        models({}, base_model="base", parameters={"t": [0.01, 0.3]}),
    ],
    "passthrough": [
        models({"scale": [{"filter": "mlp", "value": [0.7, 1.4]}, {"value": 0.9}]}),
        models({}),
    ],
    "arcee_fusion": [models({}, base_model="base")],
    "ram": [  # task vectors of 0.1: with such bounds some entries are changed by one expert alone
        models({}, {}, {}, base_model="base", parameters={"epsilon": 0.1}),
        models({}, {}, base_model="base"),
    ],
    "ramplus_tl": [
        models({}, {}, {}, base_model="base", parameters={"epsilon": 0.1}),
        models({}, {}, base_model="base", parameters={"epsilon": 0.15, "r": 0.5, "alpha": 5}),
    ],
    **{
        method: [
            *WHOLE,
            sparse((1.0, density), third=third),
            sparse((0.8, density, 0.1), (0.5, 0.8, 0.15), third=third, rescale=False),
        ]
        for method, density, third in (
            ("dare_linear", 0.3, None),
            ("dare_ties", 0.1, None),
            ("della_linear", 0.5, "epsilon"),
            ("della", 0.6, "epsilon"),
        )
    },
}
RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")
ONE, TWO = len(WHOLE), len(WHOLE) + 1  # one expert and two, thinned out at random
CASES = [
    (method, number)
    for method, found in SETTINGS.items()
    for number in range(len(found))
    if method not in RANDOM or number < ONE
]

Tensors = dict[str, torch.Tensor]


def _family(top: Path, make_model: Callable[..., Path], architecture: str, dtype: str) -> Path:
    """Write base and experts with unrelated noise, all values full ones of their type."""
    folder = top / architecture / dtype
    make_model(folder / "base", architecture, num_hidden_layers=4)
    shapes = {n: t.shape for n, t in load_file(folder / "base" / "model.safetensors").items()}
    config = json.loads((folder / "base" / "config.json").read_text())
    generator = torch.Generator().manual_seed(11)
    base = {name: torch.randn(s, generator=generator) * 0.3 for name, s in shapes.items()}
    for model in ("base", *EXPERTS):
        (folder / model).mkdir(exist_ok=True)
        for path in (folder / "base").glob("*token*.json"):
            (folder / model / path.name).write_bytes(path.read_bytes())
        (folder / model / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        own = 0.0 if model == "base" else 0.1
        tensors = {n: t + own * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        stored = {n: t.to(getattr(torch, dtype)) for n, t in tensors.items()}
        save_file(stored, folder / model / "model.safetensors", {"format": "pt"})
    return folder


def _placed(content: Any, folder: Path) -> Any:
    """Put the models' folders for their names."""
    if isinstance(content, dict):
        return {
            key: str(folder / value)
            if key in ("model", "base_model", "tokenizer_source")
            else _placed(value, folder)
            for key, value in content.items()
        }
    return [_placed(item, folder) for item in content] if isinstance(content, list) else content


class Runs:
    """Results of both programs, by architecture, stored type, method, number and variant."""

    def __init__(
        self, top: Path, make_model: Callable[..., Path], cases: Iterable[tuple[str, int]]
    ) -> None:
        self._top = top
        self.folders = {
            (architecture, dtype): _family(top, make_model, architecture, dtype)
            for architecture in ARCHITECTURES
            for dtype in UNIT
        }
        jobs = [
            [str(self.write(*key, *job, wide)), str(self.out("kit", *key, *job, wide))]
            for key in self.folders
            for job in cases
            for wide in ((False, True) if key[1] == "bfloat16" else (False,))
        ]
        (top / "jobs.json").write_text(json.dumps(jobs))
        python = Path(PROGRAM or "").parent / "python"
        subprocess.run([python, "-c", RUNNER, top / "jobs.json"], check=True, cwd=top)

    def out(self, who: str, *parts: Any) -> Path:
        return self._top / who / "-".join(map(str, parts))

    def write(
        self, architecture: str, stored: str, method: str, number: int, wide: bool = False
    ) -> Path:
        folder = self.folders[architecture, stored]
        content = {"merge_method": method, **SETTINGS[method][number]}
        content |= {"dtype": "float32" if wide else stored}
        # Without it these two of mergekit store float32 whatever the dtype.
        promoted = method in ("arcee_fusion", "ramplus_tl")
        content |= {"out_dtype": stored} if wide or promoted else {}
        path = self.out("yaml", architecture, stored, method, number, wide).with_suffix(".yml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(_placed(content, folder)))
        return path

    def inputs(self, architecture: str, stored: str) -> dict[str, Tensors]:
        folder = self.folders[architecture, stored]
        return {n: load_file(folder / n / "model.safetensors") for n in ("base", *EXPERTS)}

    def kit(self, *case: Any, wide: bool = False) -> Tensors:
        return load_file(self.out("kit", *case, wide) / "model.safetensors")

    def ours(self, *case: Any) -> Tensors:
        out = self.out("ours", *case)
        if not out.exists():
            main(["--from-mergekit", str(self.write(*case)), "--out", str(out)])
        return load_file(out / "model.safetensors")


def per_expert(configured: dict[str, Any], word: str, default: float) -> list[float]:
    """Read numbers of a configuration whose experts have one each, of every layer."""
    return [model.get("parameters", {}).get(word, default) for model in configured["models"]]
