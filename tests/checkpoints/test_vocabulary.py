"""Rows follow their tokens, whatever their order, and tokenizers follow the rows."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.reading import SINGLE, Checkpoint
from checkpoints.rows import Reordered
from checkpoints.vocabulary import align
from checkpoints.writing import write_checkpoint
from common.errors import UserError

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tokenizer(folder, words, added=()):
    """Write a word-level tokenizer whose ids are the words' places, then the added tokens'."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")
    fast.add_tokens(list(added))
    fast.save_pretrained(folder)


@pytest.fixture
def model(make_model, tmp_path):
    """Makes a model folder: its words, added tokens, rows of padding, type."""

    def make(name, words, added=(), padding=0, dtype=torch.float32, **changes):
        rows = len(words) + len(added) + padding
        seed = sum(name.encode())
        folder = make_model(tmp_path / name, seed=seed, vocabulary=rows, **changes)
        tokenizer(folder, words, added)
        held = load_file(folder / SINGLE)
        save_file({key: value.to(dtype) for key, value in held.items()}, folder / SINGLE)
        return Checkpoint(folder)

    return make


def row(model, name, place):
    return model.load(name)[place]


BASE_WORDS = [*SPECIAL, "a", "b", "c", "d"]


def test_base_puts_rows_in_the_bases_order(model):
    base = model("base", BASE_WORDS)
    # Other order, lacks c, has x besides; its row 9 belongs to no token.
    words = ["b", *SPECIAL, "x", "d", "a"]
    expert = model("expert", words, padding=2)
    aligned = align(base, {"e": expert}, "base")
    assert aligned.base is base
    assert aligned.rows is None and aligned.files == {}
    for name in (EMBEDDING, HEAD):
        found = aligned.experts["e"].load(name)
        assert aligned.experts["e"].shape(name) == found.shape == base.shape(name)
        for place, word in enumerate(BASE_WORDS):
            source, at = (expert, words.index(word)) if word in words else (base, place)
            assert torch.equal(found[place], row(source, name, at)), word
    other = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(aligned.experts["e"].load(other), expert.load(other))
    assert aligned.experts["e"].config["vocab_size"] == len(BASE_WORDS)
    assert aligned.experts["e"].fingerprint == expert.fingerprint
    assert "7 of 8 rows are its own, 1 the base's, 0 a mean" in aligned.notes[0]


def test_any_range_of_values_is_that_part_of_the_whole(model):
    base = model("base", BASE_WORDS)
    words = ["d", "b", *SPECIAL, "new"]
    experts = {"e": model("e", words), "f": model("f", [*BASE_WORDS, "new", "more"])}
    for policy in ("base", "union"):
        for found in align(base, experts, policy).experts.values():
            whole = found.load(EMBEDDING).flatten()
            for start, stop in [(0, 5), (30, 34), (31, 200), (64, 96), (255, 256), (9, 9)]:
                assert torch.equal(found.read(EMBEDDING, start, stop), whole[start:stop])


def test_only_the_rows_asked_for_are_read(model, monkeypatch):
    base = model("base", BASE_WORDS)
    expert = model("expert", ["b", "c", *SPECIAL, "a", "d"])
    asked, read = [], expert.read
    monkeypatch.setattr(expert, "read", lambda *given: asked.append(given) or read(*given))
    align(base, {"e": expert}, "base").experts["e"].read(EMBEDDING, 4 * 32 + 5, 7 * 32)
    # a, then b and c, which lie together
    assert asked == [(EMBEDDING, 6 * 32, 7 * 32), (EMBEDDING, 0, 2 * 32)]


def test_equal_vocabularies_leave_models_as_they_are(model):
    base, expert = model("base", BASE_WORDS, padding=3), model("e", BASE_WORDS, padding=3)
    for policy in ("refuse", "base", "union", "crop-to-base"):
        aligned = align(base, {"e": expert}, policy)
        assert aligned.base is base
        assert aligned.experts["e"] is expert
        assert (aligned.rows, aligned.files, aligned.notes) == (None, {}, ())


def test_a_permuted_model_says_the_same_of_the_same_text(model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = model("base", BASE_WORDS)
    expert = model("expert", ["c", "b", *SPECIAL, "a", "d"])
    aligned = align(base, {"e": expert}, "base")
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(out, aligned.experts["e"].state_dict(), base.path)
    aligned.finish(out)
    logits = {}
    for folder in (out, expert.path):
        words = AutoTokenizer.from_pretrained(folder)
        ids = words("a b d c a <unk> b", return_tensors="pt").input_ids
        with torch.no_grad():
            scores = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0]
        order = [words.convert_tokens_to_ids(word) for word in BASE_WORDS]
        logits[folder] = scores[:, order]
    torch.testing.assert_close(*logits.values())


def test_union_appends_and_averages(model, tmp_path):
    base = model("base", BASE_WORDS, ["<x>"], padding=2, dtype=torch.bfloat16)
    first_words = [*SPECIAL, "q", "d", "c", "b", "a", "<x>"]
    first = model("first", first_words, ["<y>"])
    second = model("second", [*BASE_WORDS, "q"], ["<z>", "<y>"], dtype=torch.bfloat16)
    third = model("third", BASE_WORDS)  # wider than the base, and without any new token
    aligned = align(base, {"1": first, "2": second, "3": third}, "union")
    # Base: ids 0-7 words, 8 <x>, 9 and 10 padding. New: q and <y> of the first, <z> of the second.
    result = [*BASE_WORDS, "<x>", "q", "<y>", "<z>"]
    assert aligned.rows == 12
    places = {
        "base": {word: n for n, word in enumerate(BASE_WORDS)} | {"<x>": 8},
        "1": {word: n for n, word in enumerate([*first_words, "<y>"])},
        "2": {word: n for n, word in enumerate([*BASE_WORDS, "q", "<z>", "<y>"])},
        "3": {word: n for n, word in enumerate(BASE_WORDS)},
    }
    originals = {"base": base, "1": first, "2": second, "3": third}
    for name in (EMBEDDING, HEAD):
        for label, found in {"base": aligned.base, **aligned.experts}.items():
            values = found.load(name)
            assert len(values) == 12
            for place, word in enumerate(result):
                has = {x: originals[x].load(name)[p[word]] for x, p in places.items() if word in p}
                if label in has:
                    expected = has[label]
                elif "base" in has:
                    expected = has["base"]
                else:
                    mean = sum(value.double() for value in has.values()) / len(has)
                    expected = mean.to(torch.bfloat16)  # rounded once, to the base's type
                assert torch.equal(values[place], expected.to(values.dtype)), (label, word)
    assert aligned.base.dtype(EMBEDDING) == "BF16"
    assert aligned.experts["1"].dtype(EMBEDDING) == "F32"
    assert aligned.experts["2"].dtype(EMBEDDING) == "BF16"
    assert "3 tokens that the base lacks are appended from id 9 on" in aligned.notes[-1]


@pytest.mark.parametrize("policy", ["base", "union"])
def test_a_donors_vocabulary_takes_the_bases_place(model, tmp_path, policy):
    base = model("base", BASE_WORDS, ["<x>"])
    chat_words = [*SPECIAL, "q", "c", "b", "a"]
    chat = model("chat", chat_words, ["<|im_end|>"], padding=4)
    other = model("other", [*BASE_WORDS, "q"], ["<z>"])
    aligned = align(base, {"chat": chat, "other": other}, policy, "chat")
    # The donor's ids stay. Appended: what the base has besides, then the other expert's.
    result = [*chat_words, "<|im_end|>"]
    result += ["d", "<x>", "<z>"] if policy == "union" else []
    places = {
        "base": {word: n for n, word in enumerate([*BASE_WORDS, "<x>"])},
        "chat": {word: n for n, word in enumerate([*chat_words, "<|im_end|>"])},
        "other": {word: n for n, word in enumerate([*BASE_WORDS, "q", "<z>"])},
    }
    models = {"base": base, "chat": chat, "other": other}
    assert aligned.rows is None  # the donor's padding is long enough
    for label, found in {"base": aligned.base, **aligned.experts}.items():
        values = found.load(EMBEDDING)
        assert len(values) == len(chat.load(EMBEDDING)) == 13
        for place, word in enumerate(result):
            has = {x: models[x].load(EMBEDDING)[p[word]] for x, p in places.items() if word in p}
            mean = sum(value.double() for value in has.values()) / len(has)
            expected = has.get(label, has.get("base", mean.float()))
            assert torch.equal(values[place], expected), (label, word)
        assert torch.equal(values[12], row(chat, EMBEDDING, 12))  # padding
    assert ("tokenizer.json" in aligned.files) == (policy == "union")


def test_union_keeps_rows_of_padding(model):
    base = model("base", BASE_WORDS, padding=5)
    expert = model("expert", BASE_WORDS, ["<new>"], padding=1)
    aligned = align(base, {"e": expert}, "union")
    assert aligned.rows is None  # 13 rows as before: the new token has the first row of padding
    new, found = aligned.experts["e"].load(EMBEDDING), aligned.base.load(EMBEDDING)
    assert torch.equal(found[8], row(expert, EMBEDDING, 8))
    assert torch.equal(new[8:10], expert.load(EMBEDDING)[8:10])
    for values in (new, found):
        assert torch.equal(values[10:], base.load(EMBEDDING)[10:])


def test_union_gives_a_complete_model(model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = model("base", BASE_WORDS)
    expert = model("expert", [*SPECIAL, "q", "a"], ["<|end|>"])
    aligned = align(base, {"e": expert}, "union")
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(out, aligned.base.state_dict(), base.path)
    aligned.finish(out)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.config.vocab_size == merged.get_input_embeddings().weight.shape[0] == 10
    words = AutoTokenizer.from_pretrained(out)
    assert words("a q<|end|> d zz").input_ids == [4, 8, 9, 7, 3]
    assert words.decode([4, 8, 9]).replace(" ", "") == "aq<|end|>"
    assert len(words) == 10


def test_tokens_without_a_row_are_not_appended(model):
    base = model("base", BASE_WORDS)
    expert = model("expert", [*SPECIAL, "a", "d"])  # 6 rows
    tokenizer(expert.path, [*SPECIAL, "a", "d"], ["<lost>", "b"])
    aligned = align(base, {"e": expert}, "union")
    assert aligned.rows is None and aligned.files == {}
    found = aligned.experts["e"].load(EMBEDDING)
    assert torch.equal(found[5], row(base, EMBEDDING, 5))  # b, which the expert has no row for
    assert torch.equal(found[7], row(expert, EMBEDDING, 5))
    tokenizer(base.path, BASE_WORDS, ["<lost>"])
    with pytest.raises(UserError, match="ids beyond its 8 rows"):
        align(base, {"e": expert}, "union")
    aligned = align(base, {"e": expert}, "base")
    assert aligned.experts["e"].shape(EMBEDDING) == (8, 32)


def test_tied_embeddings_have_one_matrix(model):
    base = model("base", BASE_WORDS, tie_word_embeddings=True)
    expert = model("expert", ["b", *SPECIAL, "a"], tie_word_embeddings=True)
    assert HEAD not in base.names()
    aligned = align(base, {"e": expert}, "base").experts["e"]
    assert aligned.names() == base.names()
    assert torch.equal(aligned.load(EMBEDDING)[5], row(expert, EMBEDDING, 0))
    assert torch.equal(aligned.load(EMBEDDING)[6], row(base, EMBEDDING, 6))


def test_crop_leaves_out_the_last_rows(model):
    base = model("base", BASE_WORDS)
    expert = model("expert", BASE_WORDS, ["[PAD]"], padding=3)
    aligned = align(base, {"e": expert}, "crop-to-base")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(aligned.experts["e"].load(name), expert.load(name)[:8])
    assert aligned.notes == ("expert e: the last 4 of 12 rows are left out.",)
    (expert.path / "tokenizer.json").unlink()
    assert aligned.experts["e"].shape(EMBEDDING) == (8, 32)


def test_crop_refuses_what_it_would_mix(model):
    base = model("base", BASE_WORDS)
    swapped = model("swapped", [*SPECIAL, "b", "a", "c", "d"], ["<e>"])
    with pytest.raises(UserError, match=r"id 4 is 'b', the base's is 'a'"):
        align(base, {"e": swapped}, "crop-to-base")
    with pytest.raises(UserError, match=r"has 7 rows, fewer than the base's 8"):
        align(base, {"e": model("short", BASE_WORDS[:7])}, "crop-to-base")


@pytest.mark.parametrize(
    ("words", "added", "match"),
    [
        (BASE_WORDS, ["<e>"], r"9 tokens against 8, the first difference at id 8: '<e>' against"),
        (BASE_WORDS[:-1], [], r"7 tokens against 8, the first difference at id 7: none against 'd"),
        ([*BASE_WORDS[:-2], "d", "c"], [], r"difference at id 6: 'd' against 'c'"),
    ],
)
def test_refuse_says_where_vocabularies_differ(model, words, added, match):
    base, expert = model("base", BASE_WORDS), model("expert", words, added)
    for options in ([], ["refuse"]):
        with pytest.raises(UserError, match=match) as caught:
            align(base, {"e": expert}, *options)
        assert "\n" not in str(caught.value)
        assert f"expert e ({expert.path}) has another tokenizer than" in str(caught.value)


def edit(folder, **sections):
    held = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(held | sections))


def test_what_training_leaves_in_a_tokenizer_is_no_difference(model):
    base, expert = model("base", BASE_WORDS), model("expert", BASE_WORDS)
    truncation = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    edit(expert.path, truncation=truncation, version="2.0")
    align(base, {"e": expert})
    edit(expert.path, normalizer={"type": "Lowercase"})
    with pytest.raises(UserError, match="the same tokens, but another normalizer"):
        align(base, {"e": expert})


def test_tokens_known_only_beside_the_tokenizer_count(model):
    base, expert = model("base", BASE_WORDS), model("expert", BASE_WORDS, padding=1)
    (expert.path / "added_tokens.json").write_text('{"[PAD]": 8}')
    with pytest.raises(UserError, match="9 tokens against 8"):
        align(base, {"e": expert})
    aligned = align(base, {"e": expert}, "union")
    assert aligned.rows == 9
    assert any(
        item == {**item, "id": 8, "content": "[PAD]"}
        for item in json.loads(aligned.files["tokenizer.json"])["added_tokens"]
    )


def test_models_without_a_tokenizer(model):
    base, expert = model("base", BASE_WORDS), model("expert", BASE_WORDS)
    (expert.path / "tokenizer.json").unlink()
    align(base, {"e": expert})
    with pytest.raises(UserError, match=r"expert e .* has no tokenizer\.json"):
        align(base, {"e": expert}, "base")
    align(base, {"e": expert}, "crop-to-base")


def test_an_unknown_policy_and_an_unknown_embedding_are_refused(model, tmp_path):
    base = model("base", BASE_WORDS)
    with pytest.raises(UserError, match=r"'onion' is unknown.*did you mean 'union'"):
        align(base, {}, "onion")
    odd = shutil.copytree(base.path, tmp_path / "odd")
    save_file({"x": torch.ones(3)}, odd / SINGLE)
    with pytest.raises(UserError, match="no embedding of a known name"):
        align(Checkpoint(odd), {}, "base")
    save_file({EMBEDDING: torch.ones(8, 2), HEAD: torch.ones(9, 2)}, odd / SINGLE)
    with pytest.raises(UserError, match="unlike rows"):
        align(Checkpoint(odd), {}, "base")


def test_an_adapter_has_its_bases_vocabulary(model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from checkpoints.adapters import Adapter

    base, other = model("base", BASE_WORDS), model("other", [*BASE_WORDS, "e"])
    plain = AutoModelForCausalLM.from_pretrained(base.path)
    get_peft_model(plain, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    adapter = Adapter(tmp_path / "a", base)
    aligned = align(base, {"a": adapter, "o": other}, "union")
    assert aligned.rows == 9
    assert isinstance(aligned.experts["a"], Reordered)
    found = aligned.experts["a"].load(EMBEDDING)
    assert torch.equal(found[:8], base.load(EMBEDDING))
    assert torch.equal(found[8], row(other, EMBEDDING, 8))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}'),
        ("tokenizer.json", '{"model": {"vocab": [["a"]]}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": ["a"]}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [5]}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}'),
        ("added_tokens.json", '{"x": "y"}'),
        ("added_tokens.json", '{"x": -4}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": 5}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
    ],
)
@pytest.mark.parametrize("policy", ["refuse", "base", "union", "crop-to-base"])
def test_a_damaged_tokenizer_is_one_line(model, file, content, policy):
    base, expert = model("base", BASE_WORDS), model("expert", BASE_WORDS)
    (expert.path / file).write_text(content)
    with pytest.raises(UserError) as caught:
        align(base, {"e": expert}, policy)
    assert "\n" not in str(caught.value)
    assert str(expert.path) in str(caught.value)
