"""vLLM serves a path's checkpoint as transformers does: `make test-vllm`."""

import random

import pytest

from checkpoints.reading import Checkpoint
from checkpoints.writing import write_checkpoint
from common.files import read_json, write_json
from search.dataflow_model import Step, load, sources
from tests.evaluation.vllm_marks import NEEDS_VLLM

pytestmark = NEEDS_VLLM
PATH = [Step("a", 0), Step("b", 1, 0.6), Step("b", 1, 1.7), Step("a", 1, 1.3), Step("b", 0, 0.8)]


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_a_path_s_checkpoint_scores_alike_in_both_backends(architecture, make_model, tmp_path):
    from lm_eval.api.instance import Instance
    from transformers import AutoTokenizer

    from evaluation.backends import open_backend

    for seed, name in enumerate("ab"):
        # Head size 32 is the smallest that vLLM serves.
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
        window = {"sliding_window": None} if architecture == "mistral" else {}
        make_model(tmp_path / name, architecture, seed, initializer_range=0.2, **sizes, **window)
    models = {name: Checkpoint(tmp_path / name) for name in "ab"}
    folder = tmp_path / "path"
    folder.mkdir()
    found = sources(PATH, "a", models)
    write_checkpoint(folder, {n: load(n, s, models) for n, s in found.items()}, tmp_path / "a")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"num_hidden_layers": len(PATH)})

    draw = random.Random(0)
    words = [f"w{number}" for number in range(4, 48)]
    texts = [(" ".join(draw.choices(words, k=6)), " " + draw.choice(words)) for _ in range(20)]
    requests = [
        Instance("loglikelihood", doc={}, arguments=text, idx=0, metadata=("task", item, 1))
        for item, text in enumerate(texts)
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = {}
    for name in ("hf", "vllm"):
        backend = open_backend(name, folder, tokenizer, batch_size=8, max_length=32)
        answers[name] = [score for score, _ in backend.loglikelihood(requests)]
        if name == "vllm":
            backend.close()
    assert answers["vllm"] == pytest.approx(answers["hf"], abs=1e-4)
    assert len({round(score, 3) for score in answers["hf"]}) > 15
