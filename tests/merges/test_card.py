"""`python -m merges card`: scores as the Hub reads them, and the recipe as mergekit reads it."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml
from huggingface_hub import ModelCard

from common.calling import call
from common.manifest import fingerprint, read_manifest


@pytest.fixture(scope="module")
def parents(make_model, tmp_path_factory):
    """A folder with a base and three experts."""
    top = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate(("base", "a", "b", "c")):
        make_model(top / name, seed=seed)
    return top


def merged(top, out, method: str, experts: str, *settings: str) -> None:
    models = [f"{name}={top / name}" for name in experts]
    given = ["--method", method, "--base", str(top / "base"), "--experts", *models]
    for setting in settings:
        given += ["--set", setting]
    assert call("merges.cli", [*given, "--out", str(out)]) == 0


def scored(out, path, weights: str | None = None) -> None:
    """Write a score file of a model, or of other weights."""
    weights = weights or fingerprint(read_manifest(out)["outputs"])
    tasks = {
        "suite/one": {"metric": "acc", "value": 0.75, "stderr": 0.1, "items": 8},
        "suite/two": {"metric": "acc", "value": None, "undefined": "no answer", "items": 8},
    }
    path.write_text(json.dumps({"weights": weights, "split": "test", "tasks": tasks}))


@pytest.mark.parametrize(
    ("method", "experts", "settings"),
    [
        ("linear", "abc", ()),
        ("linear", "ab", ('weights={"a": 1, "b": 0.5}', "normalize=false")),
        ("task_arithmetic", "abc", ("scale=0.4",)),
        ("ties", "abc", ("density=0.3", "scale=1.5")),
        ("slerp", "ab", ("t=0.3",)),
        ("breadcrumbs", "abc", ("density=0.7",)),
    ],
)
def test_mergekits_configuration_makes_the_same_bytes(parents, tmp_path, method, experts, settings):
    out = tmp_path / "merged"
    merged(parents, out, method, experts, *settings)
    assert call("merges.cli", ["card", str(out)]) == 0
    text = (out / "README.md").read_text().partition("## As a mergekit configuration")[2]
    path = parents / f"{tmp_path.name}.yml"  # names in it are those of the folders next to it
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    again = tmp_path / "again"
    assert call("merges.cli", ["--from-mergekit", str(path), "--out", str(again)]) == 0
    name = "model.safetensors"
    assert (again / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("method", "settings"), [("dare_ties", ()), ("pcb", ()), ("ties", ('scope="model"',))]
)
def test_what_mergekit_cannot_say_has_no_configuration(parents, tmp_path, method, settings):
    out = tmp_path / "merged"
    merged(parents, out, method, "ab", *settings)
    assert call("merges.cli", ["card", str(out)]) == 0
    assert "mergekit" not in (out / "README.md").read_text()


def test_the_hub_reads_the_scores_and_a_second_time_changes_nothing(parents, tmp_path):
    out, scores = tmp_path / "soup", tmp_path / "soup.json"
    merged(parents, out, "linear", "ab")
    before = (out / "README.md").read_text()
    scored(out, scores)
    file = out / "model.safetensors"
    earlier = f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
    for weights in (None, hashlib.sha256(earlier).hexdigest()):  # by BLAKE3, and as it was before
        scored(out, scores, weights)
        assert call("merges.cli", ["card", str(out), "--scores", str(scores)]) == 0
        text = (out / "README.md").read_text()
        (result,) = ModelCard(text).data.eval_results
        assert (result.dataset_name, result.metric_type, result.metric_value) == (
            *("suite/one", "acc"),
            0.75,
        )
        assert text.count("## Scores") == 1
        assert yaml.safe_load(text.split("---\n")[1])["base_model"] == ["base", "a", "b"]
        assert before.split("---\n", 2)[2].strip() in text


def test_scores_of_other_weights_and_other_folders_are_refused(parents, tmp_path, capsys):
    out, scores = tmp_path / "soup", tmp_path / "soup.json"
    merged(parents, out, "linear", "ab")
    scored(out, scores, "0" * 64)
    assert call("merges.cli", ["card", str(out), "--scores", str(scores)]) == 2
    assert "of other weights" in capsys.readouterr().err
    assert call("merges.cli", ["card", str(parents / "base")]) == 2
    assert "no merge with a manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        b"# A card that somebody wrote anew\n",
        b"---\nlicence: mit\n",
        b"---\n- a list\n---\nText\n",
        b"---\na: [\n---\nText\n",
        b"Words first\n---\na: 1\n---\nText\n",
        b"---\na: \xff\n---\nText\n",
    ],
)
def test_a_card_without_front_matter_is_refused_and_kept(parents, tmp_path, capsys, text):
    out = tmp_path / "merged"
    merged(parents, out, "linear", "ab")
    (out / "README.md").write_bytes(text)
    capsys.readouterr()
    assert call("merges.cli", ["card", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "README.md" in error and "merge again" in error
    assert (out / "README.md").read_bytes() == text
