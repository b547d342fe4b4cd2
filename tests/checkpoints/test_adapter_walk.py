"""Kinds of adapters: each is read as PEFT folds it, or the remedy of the message is tried."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.adapters import Adapter, open_model
from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.engine.config import MergeConfig
from merges.engine.run import merge_to_disk
from tests import compatibility
from tests.checkpoints import test_adapters, test_adapters_tied
from tests.conftest import tiny_model
from tests.evaluation import walk
from tests.evaluation.test_adapted import wrapper

TEXT = torch.tensor([[3, 5, 9, 1, 7, 8], [4, 6, 7, 9, 11, 2]])
READ = "read as PEFT folds it"
FOLD = "refused; folded by PEFT, the model is merged"
THERE = "refused; folded or converted where it was trained, it is merged"
NEVER = "refused; PEFT cannot fold it either"
WRAPPERS = ("llava", "mistral3", "gemma3", "qwen2_vl")
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
_TWO = {"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 6}
# LoRA and its variants: base, settings, result.
LORA: dict[str, tuple[str, dict[str, Any], str]] = {
    **{f"LoRA, {n}": ("biased", s, READ) for n, s in test_adapters.CASES.items()},
    **{f"LoRA, {n}": ("tied", s, READ) for n, s in test_adapters_tied.CASES.items()},
    "LoRA, layers stored as [in, out]": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        READ,
    ),
    "LoRA, a head that files call otherwise": (
        "gpt_neox",
        {"target_modules": ["query_key_value", "lm_head"]},
        READ,
    ),
    "LoRA, a body that files call otherwise": ("nemotron_h", {"target_modules": ["q_proj"]}, READ),
    "LoRA, tied, embedding saved": (
        "mamba",
        {"target_modules": ["in_proj"], "modules_to_save": ["embeddings"]},
        READ,
    ),
    **{f"LoRA, on a wrapper for pictures ({n})": (n, _TWO, READ) for n in WRAPPERS},
    "LoRA, a router saved": ("mixtral", {"modules_to_save": ["gate"]}, READ),
    "LoRA, experts saved": ("mixtral", {"modules_to_save": ["experts"]}, FOLD),
    "LoRA, stacked experts": ("mixtral", {"target_parameters": STACKS}, FOLD),
    "LoRA, experts stacked in files": ("gpt_oss", {"target_parameters": STACKS}, FOLD),
    "LoRA, starts orthogonal": ("untied", {**_TWO, "init_lora_weights": "orthogonal"}, READ),
    "MiCA": ("untied", {**_TWO, "init_lora_weights": "mica"}, READ),
    "PiSSA": ("untied", {**_TWO, "init_lora_weights": "pissa"}, FOLD),
    "PiSSA, quick (pissa_niter_4)": (
        "untied",
        {**_TWO, "init_lora_weights": "pissa_niter_4"},
        THERE,
    ),
    "OLoRA": ("untied", {**_TWO, "init_lora_weights": "olora"}, FOLD),
    "LoRA-GA": ("untied", {**_TWO, "init_lora_weights": "lora_ga"}, THERE),
    "DoRA": ("untied", {**_TWO, "use_dora": True}, FOLD),
    "DoRA, embedding": ("untied", {"target_modules": ["embed_tokens"], "use_dora": True}, FOLD),
    "LoRA, bias of B where the base has none": ("untied", {"lora_bias": True}, NEVER),
    "activated LoRA": ("untied", {"alora_invocation_tokens": [4]}, NEVER),
}
# What other types of PEFT need besides COMMON, and the result where it is not FOLD.
COMMON: dict[str, Any] = {
    **{"target_modules": ["q_proj", "up_proj"], "r": 4, "init_weights": False, "total_step": 10},
    **{"feedforward_modules": ["up_proj"], "block_size": 4, "n_frequency": 20, "vector_length": 8},
    **{"num_vectors": 16, "num_virtual_tokens": 3, "num_frozen_tokens": 1, "group_size": 4},
    **{"token_indices": [3, 5], "adapter_len": 3, "adapter_layers": 1, "boft_block_size": 4},
}
OWN: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"target_modules": None},
    "BEFT": {"target_modules": ["q_proj"]},
    "LN_TUNING": {"target_modules": ["norm", "input_layernorm"]},
    "OFT": {"r": 0, "oft_block_size": 4},
    "TINYLORA": {"init_weights": True},  # with False PEFT leaves memory as it was
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"]},
}
UNFOLDABLE = {
    *("LILY", "POLY", "SHADOW", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE"),
    *("MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT"),
}


def make_base(kind: str, folder: Path) -> None:
    """Write the base of a case."""
    if kind in ("untied", "tied", "biased"):
        more = {"tied": {"tie_word_embeddings": True}, "biased": {"attention_bias": True}}
        tiny_model(folder, intermediate_size=48, num_key_value_heads=4, **more.get(kind, {}))
        return
    torch.manual_seed(0)
    (wrapper(kind) if kind in WRAPPERS else walk.make(kind)).save_pretrained(folder)


def load(folder: Path, rows: int = 0) -> Any:
    """Load a base for PEFT, with new tokens if asked for."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    cls = AutoModelForImageTextToText if folder.name in WRAPPERS else AutoModelForCausalLM
    model = cls.from_pretrained(folder, dtype=torch.float32).eval()
    if rows:
        torch.manual_seed(7)
        model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    return model


def settings_of(kind: str, values: dict[str, Any]) -> Any:
    """Build the configuration of a PEFT type from those of the values that it knows."""
    from peft import LoraConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if kind == "LORA":
        plain = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        return LoraConfig(**plain | values)
    cls = {k.value: c for k, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind]
    values = {**COMMON, "task_type": "CAUSAL_LM", **values}
    return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


def train(base: Path, out: Path, settings: Any, rows: int) -> Any:
    """Give a base an adapter, change all that it trains, and save it with its start."""
    from peft import get_peft_model
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    model, start = load(base, rows), getattr(settings, "init_lora_weights", None)
    if start == "lora_ga":
        settings.lora_ga_config = LoraGAConfig()
        preprocess_loraga(model, settings, lambda: model(TEXT, labels=TEXT).loss.backward())
    torch.manual_seed(1)
    tuned = get_peft_model(model, settings).eval()
    if isinstance(start, str):
        settings.init_lora_weights = True
        tuned.save_pretrained(out.with_name("start"))
        settings.init_lora_weights = start
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(out)
    return tuned


def merged(base: Path, expert: Path) -> torch.Tensor:
    """Merge with one expert, and return the result's logits."""
    out = expert.parent / "merged" / base.name
    start = Checkpoint(base)
    merge_to_disk(out, MergeConfig("linear", start, {"x": open_model(expert, start)}))
    return load(out)(TEXT).logits


@torch.no_grad()
def walked(base: Path, work: Path, kind: str, values: dict[str, Any]) -> str:
    """Make an adapter, have it read, and try what the message says; return what came out."""
    from peft import PeftModel

    values = copy.deepcopy(values)
    rows = values.pop("rows", 0)
    with torch.enable_grad():
        tuned = train(base, work / "a", settings_of(kind, values), rows)

    def folded() -> Any:
        return PeftModel.from_pretrained(load(base, rows), work / "a").merge_and_unload()

    try:
        adapter = Adapter(work / "a", Checkpoint(base))
    except UserError as error:
        said = str(error)
    else:
        folded().save_pretrained(work / "folded")
        expected = Checkpoint(work / "folded")
        assert adapter.names() == expected.names()
        for name in adapter.names():
            torch.testing.assert_close(
                adapter.load(name), expected.load(name), rtol=1e-5, atol=1e-6
            )
        return READ
    assert "\n" not in said
    if "leave it out" in said:
        with pytest.raises((RuntimeError, ValueError, AttributeError, NotImplementedError)):
            tuned.merge_and_unload()
        return NEVER
    right = tuned(TEXT).logits
    assert not torch.allclose(load(base)(TEXT).logits, right, atol=1e-3)
    if "where it was trained" not in said:
        assert "fold" in said
        folded().save_pretrained(work / "folded")
        torch.testing.assert_close(merged(base, work / "folded"), right, rtol=0, atol=1e-4)
        return FOLD
    # Folding what PEFT loads, as is said of the others, gives another model.
    assert not torch.allclose(folded()(TEXT).logits, right, atol=1e-1)
    start = work / "start"
    tuned.save_pretrained(work / "converted", path_initial_model_for_weight_conversion=start)
    torch.testing.assert_close(merged(base, work / "converted"), right, rtol=0, atol=1e-4)
    tuned.merge_and_unload().save_pretrained(work / "folded")
    torch.testing.assert_close(merged(base, work / "folded"), right, rtol=0, atol=1e-4)
    return THERE


@pytest.fixture
def found(tmp_path):
    """Return a function that walks one case: base, PEFT type, settings."""

    def one(base: str, kind: str, values: dict[str, Any]) -> str:
        folder, work = tmp_path / base, tmp_path / "work"
        if not folder.exists():
            make_base(base, folder)
        shutil.rmtree(work, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return walked(folder, work, kind, values)

    return one


QUICK = ("LoRA, on a wrapper for pictures (qwen2_vl)", "LoRA-GA", "LoRA, experts saved")


@pytest.mark.parametrize("name", QUICK)
def test_an_adapter_is_read_or_its_remedy_works(found, name):
    base, values, expected = LORA[name]
    assert found(base, "LORA", values) == expected


@pytest.mark.parametrize("kind", ["VERA", "IA3", "LOHA", "LOKR", "BOFT"])
def test_what_is_told_to_be_folded_can_be(found, kind):
    assert found("untied", kind, OWN.get(kind, {})) == FOLD


@pytest.mark.slow
def test_a_walk_through_the_adapters_of_peft(found):
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    rows = []
    for name, (base, values, expected) in LORA.items():
        assert found(base, "LORA", values) == expected, name
        rows.append([name, base, expected])
    for kind in sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING):
        if kind in ("LORA", "XLORA"):  # the first is above; the second is made of other adapters
            continue
        base = "biased" if kind == "BEFT" else "untied"
        expected = NEVER if kind in UNFOLDABLE else FOLD
        assert found(base, kind, OWN.get(kind, {})) == expected, kind
        rows.append([kind, base, expected])
    compatibility.keep(
        "3-adapters",
        "Adapters as experts",
        f"{len(rows)} kinds of adapters that PEFT 0.21.2 makes, on tiny bases with random weights; "
        "those in capitals are PEFT's other types. What is read is compared tensor by tensor with "
        "PEFT's `merge_and_unload`, saved. Of the others, what the message says was done, and the "
        "logits of the merge were compared with those of the trained adapter (within 1e-4).",
        ["adapter", "base", "result"],
        rows,
        compared=3,
    )
