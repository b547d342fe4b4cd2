"""A part of the study of scale, made for real with models that learn nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from studies.scale import skills
from studies.scale.settings import Scale, subsets_of
from studies.scale.world import make_world

ROOT = Path(__file__).resolve().parents[2]
SKILLS = list(skills.SKILLS)


def tiny():
    """Return the default study with one quality and two steps of training."""
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    study = content["studies"]["scale"]
    for role in ("base", "experts", "multitask"):
        study[role]["steps"] = 2
        study[role]["batch_size"] = 4
    study |= {"seeds": [1], "counts": [2], "subsets": 1, "qualities": {"strong": 1.0}}
    study |= {"items": {"dev": 2, "test": 3}, "calibration_rows": 8}
    study["sizes"] = {"w32": study["sizes"]["w32"]}
    study["methods"]["dam"]["set"]["samples"] = 8
    study["unseen"] = {"size": "w32", "count": 2}
    return study


@pytest.fixture(scope="module")
def world():
    rows = dict.fromkeys(skills.mixtures(), 20)
    return make_world(1, rows, 5, {"dev": 4, "test": 12})


@pytest.fixture(scope="module")
def model(world):
    from bottle.training import Shape, build_model

    return build_model(Shape("mistral", 32, 2, 2, 1, 64), world.vocabulary, seed=3).eval()


def test_there_are_eight_skills_and_no_expert_sees_a_held_out_task():
    assert len(SKILLS) == 8
    mixtures = skills.mixtures()
    for skill in SKILLS:
        shown = {part.generate.__name__ for part in mixtures[skill] if part.knows == 1.0}
        assert not shown & {"mgsm", "sql_ko", "jsquad", "copa"}, skill
    # Every skill weighs alike in the model of all.
    practice = [
        sum(part.weight for part in mixtures["multitask"] if part in skill_parts)
        for skill_parts in (
            [p for p in mixtures["multitask"] if p.generate in {q.generate for q in s.practice}]
            for s in skills.SKILLS.values()
        )
    ]
    assert practice == pytest.approx([1 / 8] * 8)


def test_sets_of_experts_use_every_skill_about_equally():
    for count in (2, 4, 6, 8):
        chosen = subsets_of(SKILLS, count, 4, seed=1)
        assert len(chosen) == len(set(chosen)) == (1 if count == 8 else 4)
        assert all(len(set(one)) == count for one in chosen)
        used = [sum(skill in one for one in chosen) for skill in SKILLS]
        assert max(used) - min(used) <= 1
    assert subsets_of(SKILLS, 4, 3, seed=1) != subsets_of(SKILLS, 4, 3, seed=2)


def test_an_exact_answer_is_what_greedy_decoding_writes(world, model):
    import torch
    from torch.nn.functional import cross_entropy

    from studies.scale.scoring import Scorer

    # A model that has read a few items until it writes some of their answers.
    items = {task: world.items["test"][task] for task in ("jcomqa", "restatement")}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        for text in (items["jcomqa"][0], items["restatement"][0]):
            ids = torch.tensor([text.ids])
            optimizer.zero_grad()
            cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
            optimizer.step()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    found = Scorer(model, items).scores(weights)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for task, texts in items.items():
        right, losses = 0, []
        for text in texts:
            prompt, answer = text.ids[: text.prompt_length], text.ids[text.prompt_length :]
            written = list(prompt)
            for _ in answer:
                logits = model(torch.tensor([written])).logits[0, -1]
                written.append(int(logits.argmax()))
            right += written == text.ids
            chances = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
            places = range(text.prompt_length - 1, len(text.ids) - 1)
            losses += [-float(chances[place, text.ids[place + 1]]) for place in places]
        assert found[task].exact == pytest.approx(right / len(texts))
        assert found[task].loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert 0 < found["jcomqa"].exact < 1


def test_dam_in_memory_is_dam_on_files(tmp_path, world, model):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from checkpoints.reading import Checkpoint
    from merges.engine.config import MergeConfig
    from merges.engine.run import merge_checkpoints
    from studies.scale.dam import dam

    # Every token id is a word, so that the rows on disk read as the ids in memory.
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, world.vocabulary)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    draw, weights, rows = torch.Generator().manual_seed(0), {}, {}
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    chosen = {"ja_facts": "a", "sql": "b"}
    for skill, name in {"": "base", **chosen}.items():
        weights[name] = {
            n: v + 0.02 * torch.randn(v.shape, generator=draw) if skill and v.dim() > 1 else v
            for n, v in base.items()
        }
        model.load_state_dict(weights[name])
        model.save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
        if skill:
            rows[name] = world.calibration[skill]
            lines = []
            for text in rows[name]:
                end = text.ids[-1] == 2
                ids = [f"w{token}" for token in text.ids[1 : -1 if end else None]]
                cut = text.prompt_length - 1
                prompt, answer = " ".join(ids[:cut]), "".join(f" {word}" for word in ids[cut:])
                lines.append(json.dumps({"prompt": prompt, "answer": answer, "eos": end}))
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    given = {"preset": "best", "samples": 4, "batch_size": 2}
    experts = {name: weights[name] for name in "ab"}
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    found = dam(config, base, experts, rows, given, seed=5)
    expected = merge_checkpoints(
        MergeConfig(
            "dam",
            Checkpoint(tmp_path / "base"),
            {name: Checkpoint(tmp_path / name) for name in "ab"},
            given,
            seed=5,
            embeddings_and_norms="base",
            calibration={name: tmp_path / f"{name}.jsonl" for name in "ab"},
        )
    ).tensors
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    soup = (weights["a"]["lm_head.weight"] + weights["b"]["lm_head.weight"]) / 2
    assert not torch.allclose(found["lm_head.weight"], soup)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A part that was stopped after the base, an expert and the first half of a merge's work."""
    from studies.scale import merging, part

    folder = tmp_path_factory.mktemp("part")
    config, out = {"studies": {"scale": tiny()}}, folder / "w32-seed1.json"
    work = folder / "w32-seed1"
    calls = []
    original = merging.merged_scores

    def stopping(*given):
        calls.append(given[0].method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*given)

    part.merged_scores = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            part.make(config, "w32-seed1", out)
    finally:
        part.merged_scores = original
    kept = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    trained = []
    real = part.fit
    part.fit = lambda *given, **more: trained.append(given) or real(*given, **more)
    try:
        part.make(config, "w32-seed1", out)
    finally:
        part.fit = real
    return config, out, kept, trained


def test_a_part_that_was_stopped_trains_nothing_again(made):
    _, out, kept, trained = made
    assert {f"strong-{skill}.safetensors" for skill in (*SKILLS, "base", "multitask")} <= set(kept)
    assert trained == []
    record = json.loads(out.read_text())
    assert (record["seed"], record["size"]) == (1, "w32") and record["parameters"] > 50_000
    assert record["cpu_s"] > 0 and not out.with_suffix("").exists()


def test_a_part_holds_every_model_merge_and_measure(made):
    from checkpoints.likeness import MEASURES

    config, out, *_ = made
    cell = json.loads(out.read_text())["cells"]["strong"]
    assert list(cell["models"]) == sorted((*SKILLS, "base", "multitask"))
    tasks = set(skills.tasks())
    assert all(set(scores) == tasks for scores in cell["models"].values())
    methods = list(config["studies"]["scale"]["methods"])
    assert [merge["method"] for merge in cell["merges"]] == methods
    assert all(set(merge["scores"]) == tasks for merge in cell["merges"])
    assert cell["merges"][1]["set"]["scale"] in (0.3, 0.6, 1.0, 1.4)
    (one,) = cell["sets"]
    assert set(one["measures"]) >= set(MEASURES) and one["members"] == cell["merges"][0]["members"]


def test_other_settings_share_no_step(tmp_path):
    from studies.scale.keeping import Kept

    kept = Kept(tmp_path / "work", {"steps": 1})
    kept.spend(2.5)
    kept.spend(1.0)
    assert kept.value("a", lambda: 3) == kept.value("a", lambda: 4) == 3
    assert Kept(tmp_path / "work", {"steps": 1}).spent() == 3.5
    other = Kept(tmp_path / "work", {"steps": 2})
    assert not other.has("a") and other.spent() == 0.0
    assert other.value("a", lambda: 4) == 4


def test_a_part_that_is_not_there_is_named(tmp_path):
    from studies.scale import part

    with pytest.raises(UserError, match=r"no part 'w23-seed1' \(did you mean 'w32-seed1'"):
        part.make({"studies": {"scale": tiny()}}, "w23-seed1", tmp_path / "w23-seed1.json")


def test_settings_of_a_part_are_all_but_what_other_parts_have():
    study = Scale.model_validate(tiny())
    own = study.settings_of("w32")
    assert own["size"]["hidden_size"] == 32 and own["base"]["steps"] == 2
    assert not {"seeds", "sizes", "unseen"} & set(own)
    assert study.rows_of(skills.mixtures()) == dict.fromkeys(skills.mixtures(), 8)


LENS = """
class Result:
    def __init__(self, score):
        self.mci = type("Index", (), {"score": score})


def compare_models(folders, base_model, show_progress, include_strategy):
    from pathlib import Path

    from safetensors.numpy import load_file

    base, one, two = (load_file(f"{f}/model.safetensors")["w"] for f in (base_model, *folders))
    assert Path(folders[0], "config.json").exists()
    gap = float(((one - base) * (two - base)).sum())
    return Result(None if gap < 0 else gap)
"""


def test_the_score_of_another_package_is_taken_where_it_is_there(tmp_path, monkeypatch):
    import sys

    import torch
    from transformers import MistralConfig

    from studies.scale import lens

    base = {"w": torch.ones(3)}
    deltas = {"a": [1.0, 0.0, 0.0], "b": [2.0, 1.0, 0.0], "c": [-1.0, 0.0, 1.0]}
    experts = {name: {"w": 1 + torch.tensor(delta)} for name, delta in deltas.items()}
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(lens.PLACE, raising=False)
    if not lens.installed():
        assert lens.pairs(MistralConfig(), base, experts) is None
    monkeypatch.delitem(sys.modules, "mergelens", raising=False)
    (tmp_path / "mergelens.py").write_text(LENS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(lens.PLACE, str(tmp_path))
    found = lens.pairs(MistralConfig(), base, experts)
    assert found[0, 1] == found[1, 0] == 2.0
    assert [bool(v) for v in (found != found)[2]] == [True, True, True]  # none below 0
    monkeypatch.delitem(sys.modules, "mergelens")
