"""Models of unlike tokenizers through mergekit 0.1.5 and through `--from-mergekit`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from merges.cli import main
from tests.merges.mergekit_runs import PROGRAM, RUNNER, needs_mergekit

pytestmark = needs_mergekit

BASE = [f"w{number}" for number in range(40)]
WORDS = {
    "base": BASE,
    "ja": [*reversed(BASE), "ja1", "ja2"],
    "math": [*BASE[:30], "ja1", "math1", "math2"],
}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PADDING = 4  # rows of the base's embedding beyond its tokens


def _tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def _vocabulary(folder: Path) -> dict[str, int]:
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    return content["model"]["vocab"] | added


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("vocabularies")
    for seed, (name, words) in enumerate(WORDS.items()):
        rows = len(SPECIAL) + len(words) + PADDING * (name == "base")
        make_model(folder / name, seed=seed, vocabulary=rows)
        _tokenizer(folder / name, words)
    jobs = []
    for source in ("base", "union"):
        experts = [("ja", 0.5), ("math", 0.3)]
        content = {
            "merge_method": "task_arithmetic",
            "base_model": str(folder / "base"),
            "models": [
                {"model": str(folder / name), "parameters": {"weight": weight}}
                for name, weight in experts
            ],
            "dtype": "float32",
            "tokenizer_source": source,
        }
        (folder / f"{source}.yml").write_text(yaml.safe_dump(content))
        jobs.append([str(folder / f"{source}.yml"), str(folder / f"kit-{source}")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    python = Path(PROGRAM or "").parent / "python"
    subprocess.run([python, "-c", RUNNER, folder / "jobs.json"], check=True, cwd=folder)
    return folder


@pytest.mark.parametrize(("source", "tokens"), [("base", 44), ("union", 48)])
def test_every_token_has_the_same_row(source: str, tokens: int, top: Path) -> None:
    """mergekit cuts off padding, here it stays; `union` fills the base's four rows of it.

    In which order mergekit appends tokens hangs on Python's hash seed.
    """
    out = top / f"ours-{source}"
    main(["--from-mergekit", str(top / f"{source}.yml"), "--out", str(out)])
    ours, kit = (load_file(folder / "model.safetensors") for folder in (out, top / f"kit-{source}"))
    own_ids, kit_ids = _vocabulary(out), _vocabulary(top / f"kit-{source}")
    assert set(own_ids) == set(kit_ids) and len(own_ids) == tokens
    assert all(own_ids[word] == kit_ids[word] for word in (*SPECIAL, *BASE))
    assert set(ours) == set(kit)
    for name in ours:
        own, others = ours[name], kit[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(own) == 44 + PADDING and len(others) == tokens
            own = own[list(own_ids.values())]
            others = others[[kit_ids[word] for word in own_ids]]
        torch.testing.assert_close(own, others, rtol=1e-5, atol=1e-6)
