"""Engines of vLLM side by side: who gets which GPU and which prompt, and the same answers."""

from __future__ import annotations

import importlib.util
import os
import signal

import pytest

from common.errors import UserError
from evaluation.backends.replicas import devices_of, share, visible_gpus
from evaluation.backends.tokenisation import CORRECTED
from evaluation.cli import main
from tests.evaluation.test_vllm_parity import models  # noqa: F401


class Noted:
    """A replica that notes what it is given."""

    def begin(self, order, prompts, settings):
        self.given = (order, prompts, settings)


def test_every_engine_has_gpus_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(4) == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, GPU-3a,2,5")
    visible = visible_gpus(4)
    assert [devices_of(n, 2, visible) for n in (0, 1)] == ["7,GPU-3a", "2,5"]
    assert devices_of(1, 1, []) == ""


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_prompt_is_asked_once_with_its_own_settings(count):
    prompts, settings = list(range(count)), [f"s{n}" for n in range(count)]
    others = [Noted(), Noted()]
    asked = [(p, f"s{p}") for p in share(others, prompts, settings)]
    for replica in others:
        order, given, each = replica.given
        assert order == "generate"
        asked += zip(given, each, strict=True)
    assert sorted(asked) == list(zip(prompts, settings, strict=True))
    share(others, prompts, "one for all")
    assert {replica.given[2] for replica in others} == {"one for all"}


@pytest.mark.parametrize("option", ["--tensor-parallel", "--data-parallel"])
def test_transformers_run_on_one_gpu(tmp_path, option):
    given = ["--model", str(tmp_path), "--suites", "ja8", option, "2"]
    with pytest.raises(UserError, match=f"{option} 2 is for --backend vllm alone"):
        main(given)


@pytest.mark.vllm
@pytest.mark.timeout(3000)  # four engines, of half a minute's work each on quiet cores
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_two_engines_answer_as_one_does(models, choices, writings):  # noqa: F811
    from transformers import AutoTokenizer

    from evaluation.backends import open_backend

    tokenizer = AutoTokenizer.from_pretrained(models / "llama_a")

    def answers(parallel):
        backend = open_backend(
            *("vllm", models / "llama_a", tokenizer),
            batch_size=8,
            max_length=96,
            data_parallel=parallel,
        )
        backend.set_rule(CORRECTED)
        found = {}
        # Weights of the same shape are read in place; another architecture gets another engine.
        for name in ("llama_a", "llama_b", "mistral_a"):
            backend.serve(models / name, name)
            found[name] = (backend.loglikelihood(choices), backend.generate_until(writings))
        return backend, found

    first, one = answers(1)
    first.close()
    both, two = answers(2)
    assert len({str(found) for found in two.values()}) == 3
    for name, (scores, texts) in one.items():
        assert two[name][1] == texts
        close = pytest.approx([value for value, _ in scores], abs=1e-4)
        assert [value for value, _ in two[name][0]] == close
    counted = dict(both.counted)
    assert counted["tokens"] == first.counted["tokens"]
    os.kill(both._replicas[0]._process.pid, signal.SIGKILL)
    both._replicas[0]._process.join()
    with pytest.raises(UserError, match="ended unasked"):
        both.loglikelihood(choices)
    both.close()
