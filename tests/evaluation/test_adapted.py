"""Adapters, chat templates, wrappers, leftovers and cut prompts, each against plain passes."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from common.errors import UserError
from tests.evaluation import ja8_rows, walk

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROW = {
    "id": "0",
    "premise": "길이 젖었다.",
    "question": "원인",
    "alternative_1": "해가 났다.",
    "alternative_2": "비가 왔다.",
    "label": 1,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory, make_bpe):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("words")
    make_bpe(folder, sentencepiece=True)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    path = folder / "test/kobest/copa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(ROW) + "\n")
    return folder


def save(model, words, folder):
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def evaluated(data, folder, out, *more):
    """Run the command in this process; returns scores and the item's log-likelihoods."""
    from evaluation.cli import main

    asked = ["--model", str(folder), "--suites", "kobest/copa", "--data", str(data)]
    assert main([*asked, "--out", str(out / "s.json"), *more]) == 0
    with gzip.open(out / "s.items.jsonl.gz") as file:
        return json.loads((out / "s.json").read_text()), json.loads(file.readline())


def plain(data, folder, model, **settings) -> list[float]:
    """Score the requests by one plain pass each."""
    from evaluation.backends.tokenisation import Encoder, Rule
    from evaluation.harness import Harness

    harness = Harness(data, ["kobest/copa"], "test", folder, **settings)
    (task,) = harness.tasks
    asked = harness._lm_tasks[task.name]
    asked.build_all_requests(**harness._asking)
    encoder = Encoder(harness._tokenizer, Rule(task.how, task.bos))
    pairs = [encoder.encode_pair(*request.args) for request in asked.instances]
    return [walk.plain_loglikelihood(model.eval(), *pair) for pair in pairs]


def test_an_adapter_is_scored_as_peft_folds_it(tmp_path, words, data):
    from peft import LoraConfig, get_peft_model

    model = walk.make("llama", vocab_size=400)
    base = save(model, words, tmp_path / "base")
    settings = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    _, item = evaluated(data, base, tmp_path, "--adapter", str(tmp_path / "adapter"))
    expected = plain(data, base, adapted.merge_and_unload())
    assert item["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match=r"no adapter_config\.json there"):
        evaluated(data, base, tmp_path, "--adapter", str(base))


@pytest.mark.parametrize("start", ["", "{{ bos_token }}"])
def test_chat_prompts_are_lm_evals(tmp_path, words, data, start):
    from lm_eval.models.huggingface import HFLM

    model = walk.make("llama", vocab_size=400)
    folder = save(model, words, tmp_path / "model")
    with pytest.raises(UserError, match="its tokenizer has no chat template"):
        evaluated(data, folder, tmp_path, "--chat-template")
    words.chat_template = start + TEMPLATE
    try:
        words.save_pretrained(folder)
        lm = HFLM(pretrained=model, tokenizer=words)
        scores, item = evaluated(data, folder, tmp_path, "--chat-template")
        assert scores["chat_template"] is True
        expected = plain(data, folder, model, chat_template=True)
        assert item["loglikelihoods"] == pytest.approx(expected, abs=1e-4)

        from evaluation.harness import Harness

        harness = Harness(data, ["kobest/copa"], "test", folder, chat_template=True)
        (asked,) = harness._lm_tasks.values()
        asked.build_all_requests(**harness._asking)
        ours = [request.args for request in asked.instances]
        asked._instances = None
        asked.build_all_requests(
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            chat_template=lm.apply_chat_template,
            tokenizer_name=lm.tokenizer_name,
        )
        assert ours == [request.args for request in asked.instances]
        assert "<user>길이 젖었다." in ours[0][0] and ours[0][0].endswith("<assistant>")
        scored = lm.loglikelihood(asked.instances, disable_tqdm=True)  # BOS once, or not at all
        assert item["loglikelihoods"] == pytest.approx([value for value, _ in scored], abs=1e-4)
    finally:
        words.chat_template = None


@pytest.mark.parametrize("task", ["jcommonsenseqa", "mgsm"])
def test_solved_examples_are_turns_as_in_lm_evals_own_evaluation(tmp_path, words, task):
    """What lm-eval's evaluator hands a model with its own options, and what is asked here."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from evaluation.harness import Harness

    seen: list[tuple] = []

    class Listener(HFLM):
        def loglikelihood(self, requests, **_):
            seen.extend(request.args for request in requests)
            return [(0.0, False)] * len(requests)

        def generate_until(self, requests, **_):
            seen.extend(request.args for request in requests)
            return [""] * len(requests)

    model = walk.make("llama", vocab_size=400)
    folder = save(model, words, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    rows = ja8_rows.write(tmp_path / "data")
    ours_and_theirs = [
        Harness(rows, [f"ja8/{task}"], "test", folder, chat_template=True) for _ in range(2)
    ]
    (asked,), (theirs,) = (harness._lm_tasks.values() for harness in ours_and_theirs)
    asked.build_all_requests(**ours_and_theirs[0]._asking)
    ours = [request.args for request in asked.instances]
    shots = asked.config.num_fewshot
    assert shots > 1
    for prompt in {args[0] for args in ours}:  # counted: a turn for each example, then the item
        assert prompt.count("<user>") == shots + 1 == prompt.count("<assistant>")
    words.chat_template = TEMPLATE
    try:
        tasks = {"tasks": {theirs.config.task: theirs}, "groups": {}, "group_map": {}}
        evaluate(
            Listener(pretrained=model, tokenizer=words),
            tasks,
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    finally:
        words.chat_template = None
    assert seen == ours


def wrapper(name: str):
    import transformers as T

    text = {k: v for k, v in walk.SIZES.items() if k != "initializer_range"}
    text |= {"vocab_size": 400, "head_dim": 8}
    sight = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sight |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if name == "llava":
        text |= {"model_type": "llama"}
        eyes = sight | {"model_type": "clip_vision_model"}
        config = T.LlavaConfig(text_config=text, vision_config=eyes, image_token_index=399)
        return T.LlavaForConditionalGeneration(config)
    if name == "mistral3":
        eyes = sight | {"model_type": "pixtral", "head_dim": 16}
        text |= {"model_type": "mistral"}
        config = T.Mistral3Config(text_config=text, vision_config=eyes, image_token_index=399)
        return T.Mistral3ForConditionalGeneration(config)
    if name == "qwen2_vl":
        eyes = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
        del text["head_dim"]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
        text["rope_parameters"]["mrope_section"] = [2, 1, 1]
        config = T.Qwen2VLConfig(
            text_config=text, vision_config=eyes, image_token_id=399, video_token_id=398
        )
        return T.Qwen2VLForConditionalGeneration(config)
    text |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    config = T.Gemma3Config(
        text_config=text, vision_config=sight, image_token_index=399, mm_tokens_per_image=4
    )
    return T.Gemma3ForConditionalGeneration(config)


@pytest.mark.parametrize("name", ["llava", "mistral3", "gemma3", "qwen2_vl"])
def test_wrappers_are_scored_on_text(tmp_path, words, data, name):
    torch.manual_seed(0)
    model = wrapper(name)
    folder = save(model, words, tmp_path / name)
    _, item = evaluated(data, folder, tmp_path)
    assert item["loglikelihoods"] == pytest.approx(plain(data, folder, model), abs=1e-4)


def test_a_leftover_of_quantisation_does_not_count(tmp_path, words, data):
    model = walk.make("llama", vocab_size=400)
    folder = save(model, words, tmp_path / "left")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    _, item = evaluated(data, folder, tmp_path)
    assert item["loglikelihoods"] == pytest.approx(plain(data, folder, model), abs=1e-4)


def test_prompts_that_lost_their_beginning_are_counted(tmp_path, words, data, capsys):
    folder = save(walk.make("llama", vocab_size=400), words, tmp_path / "model")
    scores, _ = evaluated(data, folder, tmp_path)
    assert "cut" not in scores["tasks"]["kobest/copa"] and "notes" not in scores
    scores, _ = evaluated(data, folder, tmp_path, "--max-length", "24")
    assert scores["tasks"]["kobest/copa"]["cut"] == 1
    assert "1 of 1 prompts are longer than the model reads" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["trees", "rows", "alone"])
def test_log_likelihoods_are_summed_in_float32_or_more(words, dtype, way, monkeypatch):
    """One pass gives logits of half precision; their log-probabilities are not rounded again."""
    from evaluation.backends import hf
    from evaluation.backends.base import Pair
    from evaluation.backends.probe import Ways

    model = walk.make("llama").to(dtype)
    monkeypatch.setattr(hf, "ways_of", lambda *_: Ways(score=way))
    backend = hf.HFBackend(model, words, batch_size=4)
    tokens = torch.randint(3, 300, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    found = backend._score(backend._arrange([Pair(0, tokens[:30], tokens[30:])]), 1)[0][0]
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].double()
    values = logits.log_softmax(-1)[29:-1].gather(1, torch.tensor(tokens[30:])[:, None])
    # A sum in bfloat16 is off by a nat here.
    assert found == pytest.approx(float(values.sum()), abs=0.05)
    assert float(torch.tensor(found).to(dtype)) != found
