"""vLLM and transformers give the same scores on every suite: `make test-vllm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.data.converters import converter_of
from tests.evaluation import ja8_rows
from tests.evaluation.sql_toy import NAMES, item, write_dumps
from tests.evaluation.test_kobest import MADE
from tests.evaluation.test_okapi import HUB
from tests.evaluation.vllm_marks import NEEDS_VLLM

pytestmark = NEEDS_VLLM
SUITES = ["ja8", "kobest", "okapi_de", "sql_eval/basic"]
WINDOW = 2040  # two less than the models read, as vLLM needs


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Hand-made rows of every published task, in the schemas of the converted data."""
    folder = tmp_path_factory.mktemp("suites")
    ja8_rows.write(folder)
    for id, rows in MADE.items():
        write(folder / f"test/kobest/{id}.jsonl", rows)
    for id, rows in HUB.items():
        source = folder / f"{id}.jsonl"
        write(source, rows)
        converted = converter_of("okapi_de", id)({"items": source})
        write(folder / f"test/okapi_de/{id}.jsonl", converted["items"])
    questions = [item(NAMES[0], question=f"Which {n}?", id=str(n)) for n in range(2)]
    write(folder / "test/sql_eval/basic.jsonl", questions)
    write_dumps(folder / "databases/sql_eval")
    return folder


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_every_suite_is_scored_alike(data, make_model, make_bpe, tmp_path, architecture):
    from evaluation.harness import Harness

    model = make_model(
        tmp_path / "model",
        architecture,
        7,
        vocabulary=400,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=WINDOW + 2,
        initializer_range=0.2,
        **({"sliding_window": None} if architecture == "mistral" else {}),
    )
    make_bpe(model, sentencepiece=architecture == "mistral")
    found = {}
    for backend in ("hf", "vllm"):
        harness = Harness(
            data,
            SUITES,
            "test",
            model,
            batch_size=8,
            fidelity="both",
            limit=2,
            max_length=WINDOW,
            backend=backend,
        )
        try:
            found[backend] = harness.evaluate_folder(model, "m")
        finally:
            harness.close()
    (hf, hf_items), (vllm, vllm_items) = found["hf"], found["vllm"]
    assert {name.split("/")[0] for name in hf["tasks"]} == {
        f"{suite}{variant}"
        for suite in ("ja8", "kobest", "okapi_de", "sql_eval")
        for variant in ("", ":corrected")
    }
    assert vllm["counted"]["requests"] == hf["counted"]["requests"]
    for one, other in zip(hf_items, vllm_items, strict=True):
        assert (one["task"], one["id"]) == (other["task"], other["id"])
        if "loglikelihoods" in one:
            assert other["loglikelihoods"] == pytest.approx(one["loglikelihoods"], abs=1e-4)
            assert other["score"] == pytest.approx(one["score"], abs=1e-4)
        else:
            assert other["answer"].rstrip("\ufffd") == one["answer"].rstrip("\ufffd")
            assert other["score"] == one["score"]
