"""The model card, read back by the Hub's own library and by a YAML reader."""

import re

import pytest
import yaml

from checkpoints.card import model_card, public_name

RECIPE = {
    "method": "ties",
    "set": {"density": 0.2, "weights": {"ja": 1.0, "math": 0.5}, "scope": "tensor"},
    "experts": ["ja", "math"],
    "seed": 0,
}


def card(**changes):
    values = {
        "name": "ties-ja-math",
        "method": "ties",
        "title": "TIES",
        "paper": "2306.01708",
        "base": "mistralai/Mistral-7B-v0.1",
        "experts": {"ja": "augmxnt/shisa-gamma-7b-v1", "math": "WizardMath"},
        "recipe": RECIPE,
        "inputs": {"base": "a" * 64, "experts.ja": "b" * 64, "experts.math": "c" * 64},
        "outputs": {"model.safetensors": "d" * 64},
    }
    return model_card(**(values | changes))


def recipe_of(text):
    return yaml.safe_load(re.search(r"(`{3,})yaml\n(.*?)\1\n", text, re.S)[2])


def test_the_hub_reads_the_front_matter():
    from huggingface_hub import ModelCard

    data = ModelCard(card()).data
    assert data.base_model == [
        "mistralai/Mistral-7B-v0.1",
        "augmxnt/shisa-gamma-7b-v1",
        "WizardMath",
    ]
    assert data.tags == ["merge"]
    assert data.library_name == "transformers"


def test_the_recipe_can_be_read_back():
    text = card()
    assert recipe_of(text) == RECIPE
    assert "# ties-ja-math\n" in text
    assert "TIES (`ties`; [arXiv 2306.01708](https://arxiv.org/abs/2306.01708))" in text
    for line in ("| base | `mistralai/Mistral-7B-v0.1` |", f"| `experts.math` | `{'c' * 64}` |"):
        assert line in text.splitlines()
    assert f"| `model.safetensors` | `{'d' * 64}` |" in text


def test_without_a_base_the_experts_alone_are_the_sources():
    front = yaml.safe_load(card(base=None, experts={"a": "x/y", "b": "x/y"}).split("---")[1])
    assert front["base_model"] == ["x/y"]
    assert "| base |" not in card(base=None)


def test_a_paper_that_is_no_number_is_told_as_it_is():
    assert "(`ties`; none: an example)" in card(paper="none: an example")


@pytest.mark.parametrize("odd", ["a: b", "- x", "日本語 # 1", "```\n---\n", "'\"", "no", "|x|"])
def test_odd_names_stay_text(odd):
    text = card(base=odd, recipe={"method": odd}, experts={"e": "f"}, notes=("A note.",))
    front = re.match(r"---\n(.*?)\n---\n", text, re.S)[1]
    assert yaml.safe_load(front)["base_model"] == [" ".join(odd.split()), "f"]
    assert recipe_of(text) == {"method": odd}
    rows = [line for line in text.splitlines() if line.startswith("| base |")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3


def test_a_folder_is_named_without_its_machine(tmp_path):
    cached = tmp_path / "hub/models--WizardLMTeam--WizardMath-7B-V1.1/snapshots/0123abcd"
    assert public_name(cached) == "WizardLMTeam/WizardMath-7B-V1.1"
    assert public_name(tmp_path / "some" / "model") == "model"
