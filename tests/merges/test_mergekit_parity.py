"""The same YAML through mergekit 0.1.5 itself and through `--from-mergekit`.

Where rounding is all that differs, results differ by at most K roundings of unit u (2^-24 in
float32, 2^-9 in bfloat16, in which mergekit computes what is stored so) relative to the sum of the
magnitudes that enter: each method is a few products and sums per value (`_ROUNDINGS`). Where values
are chosen, by rank of magnitude or by sign of a sum, those that are nearer to the bound than its
roundings may be chosen otherwise; they are worked out in float64 from the inputs and left out.

Random masks differ by construction: there the mask is read off each result, looked at as a sample
of what it should be, and the rest of the formula is computed with it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merges.cli import main

PROGRAM = os.environ.get("BOTTLE_MERGEKIT")
pytestmark = pytest.mark.skipif(
    not PROGRAM, reason="BOTTLE_MERGEKIT is not set to the path of mergekit-yaml 0.1.5"
)

ARCHITECTURES = ("llama", "mistral")
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
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
    words = ("weight", "density", parameters.pop("third", None))
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
    sparse((1.0, 0.5), (0.5, 0.5), (0.7, 0.5), gamma=0.1),
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
    **{
        method: [
            *WHOLE,
            sparse((1.0, density), third="epsilon"),
            sparse((0.8, density, 0.1), (0.5, 0.8, 0.15), third="epsilon", rescale=False),
        ]
        for method, density in zip(
            ("dare_linear", "dare_ties", "della_linear", "della"), (0.3, 0.1, 0.5, 0.6), strict=True
        )
    },
}
RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")
ONE, TWO = len(WHOLE), len(WHOLE) + 1  # one expert and two, thinned out at random
JOBS = [(method, number) for method, found in SETTINGS.items() for number in range(len(found))]
CASES = [job for job in JOBS if job[0] not in RANDOM or job[1] < ONE]
# Products and sums per value of three experts, of both sides together; where coefficients come
# from inner products, these add their own (their sums are exact to a few units in float32).
_FEW, _COEFFICIENTS = 20, 80
_ROUNDINGS = dict.fromkeys(("slerp", "nuslerp", "multislerp", "karcher"), _COEFFICIENTS) | {
    "model_stock": _COEFFICIENTS,
    "sce": _COEFFICIENTS,
    "breadcrumbs": _COEFFICIENTS,
    "breadcrumbs_ties": _COEFFICIENTS,
}


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

    def __init__(self, top: Path, make_model: Callable[..., Path]) -> None:
        self._top = top
        self.folders = {
            (architecture, dtype): _family(top, make_model, architecture, dtype)
            for architecture in ARCHITECTURES
            for dtype in UNIT
        }
        jobs = [
            [str(self.write(*key, *job, wide)), str(self.out("kit", *key, *job, wide))]
            for key in self.folders
            for job in JOBS
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
        content |= {"out_dtype": stored} if wide else {}
        path = self.out("yaml", architecture, stored, method, number, wide).with_suffix(".yml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(_placed(content, folder)))
        return path

    def inputs(self, architecture: str, stored: str) -> dict[str, Tensors]:
        folder = self.folders[architecture, stored]
        return {n: load_file(folder / n / "model.safetensors") for n in ("base", *EXPERTS)}

    def kit(self, *case: Any) -> Tensors:
        return load_file(self.out("kit", *case) / "model.safetensors")

    def ours(self, *case: Any) -> Tensors:
        out = self.out("ours", *case)
        main(["--from-mergekit", str(self.write(*case)), "--out", str(out)])
        return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Runs:
    return Runs(tmp_path_factory.mktemp("parity"), make_model)


Arrays = list[np.ndarray]


def _per_expert(configured: dict[str, Any], word: str, default: float) -> list[float]:
    """Read numbers of a configuration whose experts have one each, of every layer."""
    return [model.get("parameters", {}).get(word, default) for model in configured["models"]]


def _largest(values: np.ndarray, count: int) -> float:
    """Return the count-th largest value; infinity for none, 0 beyond the last."""
    if count < 1:
        return np.inf
    return 0.0 if count > values.size else np.partition(values, -count, axis=None)[-count]


def _near(values: np.ndarray, counts: Sequence[int], unit: np.ndarray | float) -> np.ndarray:
    """Find values that roundings could put to the other side of the counts largest ones."""
    near = np.zeros(values.shape, bool)
    for count in (n for k in counts for n in (k, k + 1)):
        near |= np.abs(values - _largest(values, count)) <= unit
    return near


def _open(
    method: str, configured: dict[str, Any], deltas: Arrays, unit: float
) -> np.ndarray | None:
    """Find the values that roundings could choose otherwise, by rank or by sign; see the module."""
    size = deltas[0].size
    free = np.zeros(deltas[0].shape, bool)
    taken = [np.ones(deltas[0].shape) for _ in deltas]
    if method == "sce":
        density = configured.get("parameters", {}).get("select_topk", 1.0)
        if density < 1:
            variance = np.var(deltas, axis=0)
            spread = np.sqrt(variance) * np.abs(deltas).max(axis=0) + variance
            count = int(density * np.count_nonzero(variance))
            free |= _near(variance, [count], 8 * unit * spread)
            taken = [(variance >= _largest(variance, count)).astype(float)] * len(deltas)
        given = [1.0] * len(deltas)
    elif method in ("ties", "dare_ties", "della", "breadcrumbs", "breadcrumbs_ties"):
        given = _per_expert(configured, "weight", 1.0)
        densities = _per_expert(configured, "density", 1.0)
        gamma = configured["parameters"].get("gamma", 0.01) if method[0] == "b" else 0.0
        for number, (delta, density) in enumerate(zip(deltas, densities, strict=True)):
            if density >= 1:
                continue
            size_of = np.abs(delta)
            # mergekit's k is floor(density n), that of our TIES floor(density n + 1/2)
            counts = {int(density * size), int(density * size + 0.5 * (method == "ties"))}
            top = min(int(gamma * size), size - min(counts))
            free |= _near(size_of, [top, *(top + k for k in counts)], 2 * unit * size_of)
            taken[number] = (size_of >= _largest(size_of, top + min(counts))) & (
                size_of < _largest(size_of, top)
            )
    else:
        return free
    if method == "breadcrumbs":
        return free
    terms = [w * t * d for w, t, d in zip(given, taken, deltas, strict=True)]
    return free | (np.abs(sum(terms)) <= 8 * unit * sum(map(np.abs, terms)))


def _bound(
    method: str, configured: dict[str, Any], base: np.ndarray, experts: Arrays, unit: float
) -> np.ndarray:
    """Bound what roundings of a unit change, but for the one of the result itself."""
    origin = base if "base_model" in configured and method not in BASE_IS_EXPERT else 0.0
    if method in BASE_IS_EXPERT and "base_model" in configured:
        experts = [*experts, base]
    sizes = sum(np.abs(expert - origin) for expert in experts)
    if method == "model_stock":  # mergekit adds up multiples of the models, not of differences
        sizes = sizes + np.abs(base) + sum(map(np.abs, experts)) / len(experts)
    factor = 1.5 if "lambda" in configured.get("parameters", {}) else 1.0
    return _ROUNDINGS.get(method, _FEW) * unit * factor * sizes


BASE_IS_EXPERT = ("linear", "slerp", "karcher")


def _experts(configured: dict[str, Any]) -> list[str]:
    listed = configured.get("models") or configured["slices"][0]["sources"]
    names = [item["model"] for item in listed]
    return [name for name in names if name != configured.get("base_model")]


def _compare(
    runs: Runs, architecture: str, stored: str, method: str, number: int, wide: bool
) -> dict[str, tuple[np.ndarray, ...]]:
    """Return by tensor: ours, mergekit's, the bound, and what is open; float64 and truth values."""
    configured = SETTINGS[method][number]
    inputs = runs.inputs(architecture, stored)
    ours = runs.ours(architecture, stored, method, number)
    kit = runs.kit(architecture, stored, method, number, wide)
    assert set(ours) == set(kit) == set(inputs["base"])
    unit = UNIT["float32" if wide else stored]
    found = {}
    for name, own in ours.items():
        assert own.dtype == kit[name].dtype == getattr(torch, stored)
        base = inputs["base"][name].double().numpy()
        experts = [inputs[expert][name].double().numpy() for expert in _experts(configured)]
        deltas = [expert - base for expert in experts]
        found[name] = (
            own.double().numpy(),
            kit[name].double().numpy(),
            _bound(method, configured, base, experts, unit),
            _open(method, configured, deltas, unit),
        )
    return found


@pytest.mark.parametrize(("method", "number"), CASES)
@pytest.mark.parametrize("stored", UNIT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_differ_by_rounding_only(
    architecture: str, stored: str, method: str, number: int, runs: Runs
) -> None:
    left_out, total = 0, 0
    for name, (ours, kit, bound, free) in _compare(
        runs, architecture, stored, method, number, False
    ).items():
        rounding = 2 * UNIT[stored] * np.abs(kit)
        wrong = (np.abs(ours - kit) > bound + rounding) & ~free
        assert not wrong.any(), (name, np.argwhere(wrong)[:3], ours[wrong][:3], kit[wrong][:3])
        left_out, total = left_out + free.sum(), total + free.size
    assert left_out <= (0.002 if stored == "float32" else 0.2) * total


@pytest.mark.parametrize(("method", "number"), CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stored_in_bfloat16_ours_is_mergekits_formula_in_float32(
    architecture: str, method: str, number: int, runs: Runs
) -> None:
    """mergekit told to compute in float32 and to store bfloat16 (dtype, out_dtype)."""
    unequal, left_out, total = 0, 0, 0
    for name, (ours, kit, bound, free) in _compare(
        runs, architecture, "bfloat16", method, number, True
    ).items():
        neighbour = 2.0**-7 * np.maximum(np.abs(ours), np.abs(kit))
        wrong = (np.abs(ours - kit) > bound + neighbour) & ~free
        assert not wrong.any(), (name, np.argwhere(wrong)[:3], ours[wrong][:3], kit[wrong][:3])
        unequal += ((ours != kit) & ~free).sum()
        left_out, total = left_out + free.sum(), total + free.size
    assert unequal <= 0.002 * total
    assert left_out <= 0.1 * total
