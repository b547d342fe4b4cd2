"""What the engine hands to a whole-model method, and what it does with the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import sha256_file
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from merges.engine.layer_rules import LayerRules
from merges.engine.requests import WholeModelRequest, WholeModelResult

NAMES = ("ja", "math", "sql")


@pytest.fixture
def whole_model(monkeypatch: pytest.MonkeyPatch) -> list[WholeModelRequest]:
    """A whole-model method `echo` in the registry; the requests that it got."""
    from merges.engine import parameters, registry

    requests: list[WholeModelRequest] = []
    factor = registry.ParameterInfo("factor", "Scale", parameters.resolve("Scale"), 1.0)
    info = registry.MethodInfo(
        "echo", "Echo", "none", frozenset({"base", "data"}), True, False, None, "tensor", None,
        "Echo.", "Echo.",
        {"factor": factor}, "none", Path("none"),
    )  # fmt: skip

    def echo(request: WholeModelRequest, *, factor: float) -> WholeModelResult:
        requests.append(request)
        tensors = {name: tensor * factor for name, tensor in request.base.state_dict().items()}
        log = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
        return WholeModelResult(tensors, {"c": torch.ones(2)}, log, {"forward_tokens": 12})

    described = {**registry.describe(), "echo": info}
    monkeypatch.setattr(registry, "describe", lambda: described)
    monkeypatch.setattr(registry, "load", lambda name: echo)
    monkeypatch.setattr(registry, "sources", lambda name: ("merges/engine/run.py",))
    return requests


def test_whole_model_methods_get_the_request_and_their_extras_are_saved(
    whole_model: list[WholeModelRequest], llama: Path, tmp_path: Path
) -> None:
    base = Checkpoint(llama / "base")
    experts = {name: Checkpoint(llama / name) for name in NAMES}
    data = {name: tmp_path / f"{name}.jsonl" for name in NAMES}
    for path in data.values():
        path.write_text("{}\n")
    options = {"calibration": data, "seed": 4, "embeddings_and_norms": "base", "threads": 1}
    out = tmp_path / "out"
    engine.merge_to_disk(out, MergeConfig("echo", base, experts, {"factor": 2}, **options))
    assert whole_model == [WholeModelRequest(base, experts, data, None, 4, "base", 1)]
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[name], 2 * base.load(name)) for name in written)
    extra = load_file(out / "extra" / "coefficients.safetensors")
    assert torch.equal(extra["c"], torch.ones(2))
    assert (out / "training.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"
    assert json.loads((out / "cost.json").read_text())["counted"] == {"forward_tokens": 12}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"]["calibration.ja"] == sha256_file(data["ja"])
    assert {"training.csv", "extra/coefficients.safetensors"} <= set(manifest["outputs"])

    def refused(message: str, factor: float = 1.0, **changed: object) -> None:
        with pytest.raises(UserError, match=message):
            engine.merge_checkpoints(
                MergeConfig("echo", base, experts, {"factor": factor}, **{**options, **changed})
            )

    refused("give --calibration sql=FILE too", calibration={n: data[n] for n in NAMES[:2]})
    refused("no expert 'sqll'", calibration={**data, "sqll": data["sql"]})
    refused("nowhere: no such file", calibration={**data, "sql": tmp_path / "nowhere"})
    refused("nowhere: no such file", teachers=tmp_path / "nowhere")
    refused("takes no layer rules", parameters_for=LayerRules("echo", []))
    refused("is not finite; lower the learning rate", factor=1e39)
    with pytest.raises(UserError, match="method echo: no base given"):
        engine.merge_checkpoints(MergeConfig("echo", None, experts, {}, **options))
