"""United tokenizers of every kind: the base's ids stay, and new tokens are used."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from checkpoints.tokens import read_tokens
from checkpoints.union import NewToken, output_tokenizer
from common.errors import UserError

ENGLISH = ["the cat sat on the mat", "the rat sat on the cat", "a hat on the mat", "that cat"] * 3
GERMAN = ["die katze sitzt auf der matte", "die ratte sitzt auf der katze", "der hut"] * 3


def train(folder, kind, texts, added=(), size=60):
    if kind == "BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=256 + size, initial_alphabet=alphabet, special_tokens=["<s>"]
        )
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        letters = list("abcdefghijklmnopqrstuvwxyz▁")
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=["<s>", "<unk>"], unk_token="<unk>"
        )
        trainer.initial_alphabet = letters
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["<s>", "<unk>"])
    made.train_from_iterator(texts, trainer)
    made.add_tokens(list(added))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return read_tokens(folder)


def unite(folder, base, others):
    """Give the missing tokens consecutive ids, as the policy has it."""
    new, known = [], set(base.ids)
    for name, tokens in others.items():
        for token in sorted(tokens.ids, key=tokens.ids.get):
            if token not in known:
                known.add(token)
                new.append(NewToken(token, max(base.ids.values()) + 1 + len(new), tokens, name))
    return new, output_tokenizer([folder], base, new)


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
def test_ids_stay_and_new_tokens_are_used(tmp_path, kind):
    base = train(tmp_path / "base", kind, ENGLISH, ["<|im|>", "<|zz|>"])
    other = train(tmp_path / "other", kind, GERMAN, ["<|im|>", "<|de|>"])
    new, files = unite(tmp_path / "base", base, {"de": other})
    assert any(not token.added for token in new) and any(token.added for token in new)
    united = Tokenizer.from_str(files["tokenizer.json"].decode())
    ids = united.get_vocab()
    assert ids == base.ids | {token.text: token.id for token in new}
    assert sorted(ids.values()) == list(range(len(ids)))
    first = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    text = "die katze<|de|>der hut<|im|>the cat"
    found = united.encode(text)
    assert ids["<|de|>"] in found.ids and ids["<|im|>"] in found.ids
    plain = united.encode("die katze sitzt auf der matte")
    assert any(number > max(base.ids.values()) for number in plain.ids)
    assert len(plain.ids) < len(first.encode("die katze sitzt auf der matte").ids) or kind != "BPE"
    if kind != "WordPiece":  # whose unknown words leave nothing to come back from
        assert united.decode(plain.ids) == "die katze sitzt auf der matte"


def test_united_byte_level_text_of_the_base_is_cut_as_before(tmp_path):
    base = train(tmp_path / "base", "BPE", ENGLISH)
    other = train(tmp_path / "other", "BPE", ["日本語 日本語", "0123 0123"] * 4)
    _, files = unite(tmp_path / "base", base, {"ja": other})
    united = Tokenizer.from_str(files["tokenizer.json"].decode())
    first = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    for text in {*ENGLISH, "another that, again!"}:
        assert united.encode(text).ids == first.encode(text).ids
    assert united.encode("日本語").ids != first.encode("日本語").ids
    assert united.decode(united.encode("日本語 0123").ids) == "日本語 0123"


def test_transformers_loads_the_union_of_a_llama_tokenizer(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    base = train(tmp_path / "base", "BPE", ENGLISH, ["<|im|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "base" / "tokenizer.json"), bos_token="<s>"
    )
    fast.save_pretrained(tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(i): {k: v for k, v in item.items() if k != "id"}
        for i, item in ((base.ids[t], d) for t, d in base.added.items())
    }
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "base" / "merges.txt").write_text("stale")
    other = train(tmp_path / "other", "BPE", GERMAN, ["<|de|>"])
    new, files = unite(tmp_path / "base", read_tokens(tmp_path / "base"), {"de": other})
    assert files["merges.txt"] is None
    for name, content in files.items():
        (tmp_path / "base" / name).unlink()
        if content is not None:
            (tmp_path / "base" / name).write_bytes(content)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert loaded.get_vocab() == base.ids | {token.text: token.id for token in new}
    assert loaded.bos_token_id == base.ids["<s>"]
    text = "the katze<|de|>auf der mat<|im|>"
    assert loaded.decode(loaded(text).input_ids) == text
    assert loaded.convert_tokens_to_ids("<|de|>") in loaded(text).input_ids


def test_tokens_only_added_leave_the_model_of_words_alone(tmp_path):
    base = train(tmp_path / "base", "BPE", ENGLISH)
    other = train(tmp_path / "other", "BPE", ENGLISH, ["<|a|>", "<|b|>"])
    _, files = unite(tmp_path / "base", base, {"x": other})
    content = json.loads(files["tokenizer.json"])
    assert content["model"] == base.content["model"]
    assert Tokenizer.from_str(json.dumps(content)).token_to_id("<|b|>") == len(base.ids) + 1


@pytest.mark.parametrize(("ours", "theirs"), [("BPE", "Unigram"), ("WordPiece", "BPE")])
def test_tokenizers_of_other_kinds_are_refused(tmp_path, ours, theirs):
    base = train(tmp_path / "base", ours, ENGLISH)
    other = train(tmp_path / "other", theirs, GERMAN)
    with pytest.raises(UserError, match=rf"expert de: its tokenizer \({theirs}\) spells tokens"):
        unite(tmp_path / "base", base, {"de": other})


def test_nothing_new_changes_nothing(tmp_path):
    base = train(tmp_path / "base", "BPE", ENGLISH)
    assert output_tokenizer([tmp_path / "base"], base, []) == {}
