"""Candidates in memory are the merges on disk, also where files name parameters otherwise."""

from __future__ import annotations

import pytest
import torch

from checkpoints.loading import load_causal
from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.engine.config import MergeConfig
from merges.engine.run import merge_to_disk
from tests.evaluation import walk
from tests.evaluation.test_adapted import wrapper


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Import lm-eval only when the tests run: collecting them stays quick."""
    global Allocated, ListedSpace
    from search.merged import ListedSpace
    from search.workbench import Allocated


WRAPPERS = ("gemma3", "qwen2_vl")
TOKENS = torch.tensor([[3, 5, 9, 1, 7, 8]])


def models(kind, top):
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = wrapper(kind) if kind in WRAPPERS else walk.make(kind, seed=seed)
        model.save_pretrained(top / str(seed))
        found.append(Checkpoint(top / str(seed)))
    return found


@pytest.mark.parametrize(
    "kind", ["mixtral", "qwen3_moe", "granitemoe", "gpt_oss", "gpt_neox", "nemotron_h", *WRAPPERS]
)
def test_a_candidate_in_memory_is_the_merge(kind, tmp_path):
    base, a, b = models(kind, tmp_path)
    given = {"base": base, "experts": {"a": a, "b": b}}
    held = Allocated(base)
    for number, scale in enumerate((0.3, 1.0)):  # the second is written over the first
        space = ListedSpace(MergeConfig("task_arithmetic", **given), {}, [])
        held.become(space, {"set": {"scale": scale}})
        out = tmp_path / f"out{number}"
        merge_to_disk(out, MergeConfig("task_arithmetic", **given, parameters={"scale": scale}))
        with torch.no_grad():
            assert torch.equal(held.model(TOKENS).logits, load_causal(out)(TOKENS).logits)


def test_a_parameter_that_no_file_has_is_named(tmp_path, monkeypatch):
    base, *_ = models("mixtral", tmp_path)
    names = [name.replace("w3", "w4") for name in base.names()]
    monkeypatch.setattr(base, "names", lambda: names)
    with pytest.raises(UserError, match=r"do not have model\.layers\.0\..*w3\.weight"):
        Allocated(base)
