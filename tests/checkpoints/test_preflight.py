"""The report that comes before a merge: every error, what differs, and what it will cost."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import preflight as module
from checkpoints.checking import check_compatible
from checkpoints.cli import main
from checkpoints.preflight import amount, check_merge
from checkpoints.reading import SINGLE, Checkpoint
from common.errors import UserError


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("preflight") / "base")


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def configure(folder, **fields):
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | fields))
    return Checkpoint(folder)


def store(folder, change):
    held = {name: change(name, tensor) for name, tensor in load_file(folder / SINGLE).items()}
    save_file({k: v for k, v in held.items() if v is not None}, folder / SINGLE)
    return Checkpoint(folder)


def test_a_sound_merge_has_no_errors_and_its_size_is_counted(base, copy, tmp_path):
    report = check_merge(
        Checkpoint(base),
        {"e": Checkpoint(copy)},
        out=tmp_path / "deep" / "out",
        dtype="BF16",
        shard_bytes=20_000,
    )
    (note,) = report.notes
    assert report.errors == [] and note.startswith("next to the weights")
    report.require()
    text = "\n".join(report.lines())
    assert "base: llama, 21,664 parameters in 21 tensors, 2 layers of width 32, F32" in text
    # 21,664 parameters of two bytes; shards hold at most 20,000 bytes
    assert "result: 43.3 KB in 3 weight files, BF16" in text
    assert "memory: about" in text and "time: about 1 s" in text


def test_sizes_agree_with_the_files_that_are_written(base, tmp_path):
    from checkpoints.writing import write_weights

    checkpoint = Checkpoint(base)
    for shard_bytes in (10_000, 30_000, 1 << 30):
        folder = tmp_path / str(shard_bytes)
        folder.mkdir()
        hashes = write_weights(folder, checkpoint.state_dict(), shard_bytes)
        report = check_merge(checkpoint, {"e": checkpoint}, shard_bytes=shard_bytes)
        assert f" in {len(hashes)} weight file" in "\n".join(report.facts)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', the base's is 'llama'"),
        ({"num_attention_heads": 8}, "num_attention_heads is 8, the base's is 4"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, the base's is 2"),
        ({"hidden_size": 64}, "hidden_size is 64"),
        ({"text_config": {"num_hidden_layers": 9}}, "num_hidden_layers is 9"),
    ],
)
def test_another_architecture_is_refused(base, copy, fields, match):
    expert = configure(copy, **fields)
    with pytest.raises(UserError, match=match) as caught:
        check_compatible(Checkpoint(base), {"e": expert})
    assert "\n" not in str(caught.value)
    assert str(caught.value) in check_merge(Checkpoint(base), {"e": expert}).errors


def test_a_field_that_only_one_configuration_has_is_no_difference(base, copy):
    held = json.loads((copy / "config.json").read_text())
    del held["num_key_value_heads"]
    (copy / "config.json").write_text(json.dumps(held))
    check_compatible(Checkpoint(base), {"e": Checkpoint(copy)})


def test_all_errors_are_told_not_only_the_first(base, copy, make_model, tmp_path):
    other = make_model(tmp_path / "other", vocabulary=50)
    store(copy, lambda name, tensor: None if name == "model.norm.weight" else tensor)
    report = check_merge(Checkpoint(base), {"short": Checkpoint(copy), "wide": Checkpoint(other)})
    assert len(report.errors) == 2
    assert "expert short" in report.errors[0] and "model.norm.weight" in report.errors[0]
    assert "expert wide" in report.errors[1] and "50 tokens against 48" in report.errors[1]
    assert [line for line in report.lines() if line.startswith("error: ")] == [
        f"error: {error}" for error in report.errors
    ]
    with pytest.raises(UserError, match="expert short"):
        report.require()


def test_a_vocabulary_policy_is_followed(base, make_model, tmp_path):
    other = Checkpoint(make_model(tmp_path / "other", vocabulary=50))
    for policy in ("base", "union", "crop-to-base"):
        report = check_merge(Checkpoint(base), {"wide": other}, vocabulary=policy)
        assert report.errors == []
    grown = check_merge(Checkpoint(base), {"wide": other}, vocabulary="union")
    # two rows of 32 float32 values more in embedding and head than the base's 86,656 bytes
    assert any("result: 87.2 KB" in fact for fact in grown.facts)
    assert any("2 tokens that the base lacks" in note for note in grown.notes)
    # no policy mends another shape
    narrow = Checkpoint(make_model(tmp_path / "narrow", vocabulary=50, intermediate_size=32))
    report = check_merge(Checkpoint(base), {"narrow": narrow}, vocabulary="base")
    assert "intermediate_size is 32" in report.errors[0]


def test_what_differs_but_stops_nothing_is_noted(base, copy):
    configure(copy, rms_norm_eps=0.5, eos_token_id=5)
    (copy / "chat_template.jinja").write_text("a")
    shutil.copytree(base, copy.parent / "first")
    (copy.parent / "first" / "chat_template.jinja").write_text("b")
    half = store(copy, lambda name, tensor: tensor.bfloat16())
    report = check_merge(Checkpoint(copy.parent / "first"), {"e": half})
    assert report.errors == []
    notes = "\n".join(report.notes)
    for part in (
        "expert e: rms_norm_eps is 0.5, the base's 1e-06",
        "expert e: eos_token_id is 5, the base's 2",
        "expert e is stored in BF16, the base in F32",
        "expert e has another chat template",
    ):
        assert part in notes


def test_notes_name_the_donor_that_is_given(base, copy):
    configure(copy, eos_token_id=5)
    report = check_merge(Checkpoint(base), {"e": Checkpoint(copy)}, donor="e")
    assert "expert e: eos_token_id is 5, the base's 2; the result has e's" in report.notes


def test_tied_heads_biases_and_buffers_are_told(base, copy, make_model, tmp_path):
    tied = Checkpoint(make_model(tmp_path / "tied", tie_word_embeddings=True))
    assert "head tied to the embedding" in check_merge(tied, {"e": tied}).facts[0]
    with pytest.raises(UserError, match=r"lm_head\.weight.*ties its output head"):
        check_compatible(tied, {"e": Checkpoint(base)})
    with pytest.raises(UserError, match=r"lacks .*lm_head\.weight.*ties its output head"):
        check_compatible(Checkpoint(base), {"e": tied})
    biased = Checkpoint(make_model(tmp_path / "biased", attention_bias=True))
    assert "8 bias vectors merged like weights" in check_merge(biased, {"e": biased}).notes
    with pytest.raises(UserError, match=r"\(one of them has biases\)"):
        check_compatible(Checkpoint(base), {"e": biased})
    held = load_file(copy / SINGLE)
    save_file(held | {"count": torch.tensor([3])}, copy / SINGLE)
    counting = Checkpoint(copy)
    assert "1 tensor without floating-point" in "".join(
        check_merge(counting, {"e": counting}).notes
    )


def test_a_tensor_of_numbers_of_another_kind_is_refused(base, copy):
    expert = store(copy, lambda name, t: t.to(torch.int32) if name == "model.norm.weight" else t)
    with pytest.raises(UserError, match=r"model\.norm\.weight is of type I32, the base's of F32"):
        check_compatible(Checkpoint(base), {"e": expert})


def test_a_full_disk_is_foreseen(base, copy, tmp_path, monkeypatch):
    free = SimpleNamespace(free=40_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: free)
    arguments = Checkpoint(base), {"e": Checkpoint(copy)}
    report = check_merge(*arguments, out=tmp_path / "out")
    assert len(report.errors) == 1
    assert (
        "the disk is full: 40 KB are free" in report.errors[0]
        and "KB are needed" in report.errors[0]
    )
    free.free = 10**9
    assert check_merge(*arguments, out=tmp_path / "out").errors == []


def test_memory_follows_the_unit_of_work(base, monkeypatch):
    monkeypatch.setattr(module, "_LIBRARIES", 0)
    monkeypatch.setattr(module, "_PIECE", 100)
    checkpoint = Checkpoint(base)

    def memory(**options):
        facts = check_merge(checkpoint, {"a": checkpoint, "b": checkpoint}, **options).facts
        return next(fact for fact in facts if fact.startswith("memory"))

    # three models and six buffers of 100 values, of the largest parameter of 64 x 32
    assert memory() == f"memory: about {amount(9 * 4 * 100)}"
    assert memory(unit="tensor") == f"memory: about {amount(9 * 4 * 64 * 32)}"


def test_an_unknown_type_and_no_expert_are_refused(base):
    with pytest.raises(UserError, match=r"'BF17' .*did you mean 'BF16'"):
        check_merge(Checkpoint(base), {"e": Checkpoint(base)}, dtype="BF17")
    with pytest.raises(UserError, match="no expert"):
        check_merge(Checkpoint(base), {})


def test_a_merge_without_a_base_is_held_against_its_first_expert(base, copy):
    report = check_merge(None, {"a": Checkpoint(base), "b": Checkpoint(copy)})
    assert report.errors == []
    assert report.facts[0].startswith("first expert: llama")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (86_656, "86.7 KB"), (14_500_000_000, "14.5 GB")],
)
def test_bytes_are_written_for_readers(count, text):
    assert amount(count) == text


def test_the_command_prints_the_report_and_fails_with_it(base, copy, tmp_path, capsys):
    given = ["preflight", "--base", str(base), "--experts", f"e={copy}"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    assert "disk: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    configure(copy, num_attention_heads=8)
    with pytest.raises(UserError, match="num_attention_heads"):
        main(given)
    assert "base: llama" in capsys.readouterr().out
    for wrong, match in [
        (["--experts", "e"], "--experts e: give NAME=PATH"),
        (["--experts", f"e={copy}", f"e={copy}"], "'e' is given twice"),
    ]:
        with pytest.raises(UserError, match=match):
            main(["preflight", "--base", str(base), *wrong])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*given, "--shard-size", "0"])
    assert "'0' is no size; give 500MB" in capsys.readouterr().err


def test_show_summarises_a_model(base, copy, capsys):
    assert main(["show", str(base)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "llama, 21,664 parameters in 21 tensors, 2 layers of width 32, F32"
    assert second.endswith("in 1 file (model.safetensors first)")
    assert third == "tokenizer: 48 tokens, 48 rows in the configuration"
    torch.save(load_file(copy / SINGLE), copy / "pytorch_model.bin")
    (copy / SINGLE).unlink()
    with pytest.raises(UserError, match="a pickle"):
        main(["show", str(copy)])
    assert main(["show", str(copy), "--allow-pickle"]) == 0
