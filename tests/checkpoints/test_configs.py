"""Configurations are compared as transformers builds them, in any spelling."""

from __future__ import annotations

import pytest

from checkpoints.configs import config_differences, says
from checkpoints.stored import says_tied, with_tie

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 48,
}
NEW = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
OLD = {"rope_theta": 10000.0, "rope_scaling": None}
LONG = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
THETA = {"rope_parameters.rope_theta": (10000, 1000000)}


SPELLINGS = [
    (NEW, OLD, {}),
    (NEW, {}, {}),  # a default that is left out
    (NEW, LONG, THETA),
    (OLD, LONG, THETA),
    ({}, LONG, THETA),
    (OLD, {"rope_theta": 1e6}, THETA),
    (
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
        {},
    ),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters.factor": (2.0, 4.0)},
    ),
    ({"torch_dtype": "bfloat16"}, {"dtype": "float32", "use_cache": False}, {}),
    ({"head_dim": 16}, {}, {}),  # as it follows from the width
    ({"hidden_act": "swish"}, {"hidden_act": "silu"}, {}),
    ({"rms_norm_eps": 1e-5}, {}, {"rms_norm_eps": (1e-5, 1e-6)}),
    ({}, {"attention_dropout": 0.1, "unsloth_version": "1", "_name_or_path": "x"}, {}),
    ({}, {"mlp_bias": True}, {"mlp_bias": (False, True)}),
]


@pytest.mark.parametrize(("ours", "theirs", "expected"), SPELLINGS)
def test_spelling_and_defaults_are_no_difference(ours, theirs, expected):
    assert config_differences(LLAMA | ours, LLAMA | theirs) == expected


# Nobody knows the defaults of a type that transformers does not know.
@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [case for case in SPELLINGS if case[0] and case[1]]
)
def test_of_unknown_types_what_both_say_is_compared(ours, theirs, expected):
    kind = {"model_type": "not known"}
    assert config_differences(LLAMA | ours | kind, LLAMA | theirs | kind) == expected


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "expected"),
    [
        ("mistral", {"sliding_window": None}, {}, {"sliding_window": (None, 4096)}),
        (
            "qwen2",
            {"use_sliding_window": False, "sliding_window": 4096},
            {"sliding_window": None},
            {},
        ),
        ("gpt2", {"n_head": 2}, {"n_head": 4}, {"num_attention_heads": (2, 4)}),
        (
            "gpt2",
            {},
            {"activation_function": "gelu"},
            {"activation_function": ("gelu_new", "gelu")},
        ),
        (
            "gemma2",
            {},
            {"final_logit_softcapping": None},
            {"final_logit_softcapping": (30.0, None)},
        ),
        ("granite", {}, {"logits_scaling": 8.0}, {"logits_scaling": (1.0, 8.0)}),
    ],
)
def test_what_changes_the_forward_is_told(kind, ours, theirs, expected):
    found = config_differences({"model_type": kind} | ours, {"model_type": kind} | theirs)
    found = {key: pair for key, pair in found.items() if "head_dim" not in key}
    assert found == expected


def test_names_of_other_types_count_as_said():
    config = {"model_type": "gpt2", "n_head": 2}
    assert says(config, "num_attention_heads") and not says(config, "num_key_value_heads")


def test_the_default_of_the_class_says_whether_the_head_is_tied():
    assert says_tied({"model_type": "gpt2"}) and not says_tied({"model_type": "llama"})
    assert not says_tied({"model_type": "not known"})
    assert says_tied({"model_type": "llama", "tie_word_embeddings": True})
    assert with_tie({"text_config": {"tie_word_embeddings": True}}, False) == {
        "text_config": {"tie_word_embeddings": False},
        "tie_word_embeddings": False,
    }
