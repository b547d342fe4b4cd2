"""Many model types through merging, the smoke check, DAM, AdaMerging and the data-flow space."""

from __future__ import annotations

import json
import os
import re

import pytest
from safetensors.torch import save_file

from checkpoints.smoke import measure
from common.errors import UserError
from common.files import read_json, write_json
from merges.engine.config import MergeConfig
from merges.engine.run import merge_to_disk
from search.dataflow import DataFlowSpace
from tests import compatibility
from tests.evaluation import vllm_registry, walk
from tests.merges import families

# The types that are walked through at every run; a record is of all of `walk.TYPES`.
SAMPLE = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"),
    *("granite", "stablelm", "cohere", "smollm3", "gpt_neox", "gpt2", "mixtral", "qwen3_moe"),
    *("phi", "starcoder2", "glm4", "lfm2", "gpt_oss", "falcon_h1", "bloom", "qwen3_next"),
)
DATA_METHODS = {
    "dam": {"preset": "best", "samples": 4, "batch_size": 2},
    "adamerging": {"samples": 4, "batch_size": 2, "epochs": 1},
}
VLLM = (
    f"The last column is what the registry of vLLM {vllm_registry.kept()['version']}'s CPU build "
    "lists, and nothing that was run: it `knows` the class, or sends it to transformers' code, or "
    "does not list it (vLLM may then try transformers' code all the same)."
)
TEXT = "w5 w6 w7 w20 w9 w31 w40 w8 w8 w12 w30"


def refusal(error):
    message = str(error)
    assert "\n" not in message
    reason = re.sub(r"^.*?/base\)?: ", "", message.split("; ")[0])
    return f"refused: {reason}"


def merged(folder, request, method, **settings):
    """Merge and have the result read a text; return what to write in the table."""
    out = folder / method
    config = MergeConfig(method, request.base, request.experts, **settings)
    try:
        merge_to_disk(out, config)
    except UserError as error:
        return refusal(error)
    found = measure(out, TEXT)
    assert found["not_finite"] == 0 and found["perplexity"] is not None
    return "works"


def rearranged(folder, request):
    """Put a path's layers into a model of the stock class and have it read a text."""
    names = list(request.experts)
    try:
        space = DataFlowSpace(request.base, request.experts)
    except UserError as error:
        return refusal(error)
    path = [(names[0], 0, 1.0), (names[1], 1, 0.7), (names[1], 0, 1.5)]
    steps = [dict(zip(("expert", "layer", "scale"), step, strict=True)) for step in path]
    tensors, changes = space.tensors({"path": steps, "embedding_from": names[0]})
    out = folder / "ties"
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", read_json(out / "config.json") | changes)
    (out / "manifest.json").unlink()
    assert measure(out, TEXT)["not_finite"] == 0
    return "works"


def row_of(kind, folder, capsys):
    """Walk one type through everything; any other error than a `UserError` fails the test."""
    request = families.make_request(folder, kind, rows=4)
    capsys.readouterr()
    cells, alone = [merged(folder, request, "ties")], False
    for method, parameters in DATA_METHODS.items():
        found = merged(
            folder, request, method, parameters=parameters, calibration=request.calibration
        )
        alone |= "one by one" in capsys.readouterr().err  # said once for the same models
        cells.append(f"{found}, row by row" if alone and found == "works" else found)
    return [kind, *cells, rearranged(folder, request), vllm_registry.knows(kind)]


@pytest.mark.slow
def test_a_walk_through_merging_and_learning(tmp_path, capsys):
    recording = bool(os.environ.get("BOTTLE_RECORD"))
    kinds = sorted(walk.TYPES) if recording else SAMPLE
    rows = [row_of(kind, tmp_path / kind, capsys) for kind in kinds]
    found = {row[0]: row for row in rows}
    for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "granite", "phi"):
        assert found[kind][1:5] == ["works"] * 4
    if not recording:
        kept = json.loads((compatibility.RECORDS / "2-merging.json").read_text())["rows"]
        assert [found[row[0]] for row in kept if row[0] in found] == [
            row for row in kept if row[0] in found
        ]
        assert found.keys() <= {row[0] for row in kept}
        return
    compatibility.keep(
        "2-merging",
        "Model types in `python -m merges` and the data-flow search",
        f"{len(rows)} types of transformers, each a tiny base with two experts, random weights in "
        "float32, windows shorter than the calibration rows, and multipliers, caps and biases that "
        "are not neutral. `ties` is any method without data. Each merge is read by transformers "
        "and passes the smoke check. `row by row`: samples of this type cannot be packed, so DAM "
        "and AdaMerging read them one after another, which takes longer. Experts and routers of a "
        "mixture are not learned, see [DAM](dam.md#models). " + VLLM,
        ["type", "merge (ties)", "DAM", "AdaMerging", "data-flow search", "vLLM (CPU build)"],
        rows,
        compared=6,
    )
