"""The chat template that a mergekit configuration asks for, up to the written folder."""

import json
from types import SimpleNamespace

import pytest

from checkpoints.chat import write_template
from common.errors import UserError
from merges.mergekit.templates import check_template, chosen_template


@pytest.fixture
def models(tmp_path):
    """Four models; the last is a folder with an adapter's behind it."""
    templates = {"base": None, "one": "first\n", "two": "first", "three": "other", "lora": "other"}
    found = {}
    for name, text in templates.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if text is not None:
            (folder / "chat_template.jinja").write_text(text)
        found[name] = SimpleNamespace(folders=[folder])
    found["two"].folders.append(found.pop("lora").folders[0])
    return found


def test_auto_is_the_most_frequent_one(models):
    template, (note,) = chosen_template("auto", models)
    assert template == "first" and note.endswith("auto takes that of one, two")
    # Equally frequent: the first model's, and a note.
    template, notes = chosen_template("auto", {n: models[n] for n in ("three", "two")})
    assert template == "other" and "depends on PYTHONHASHSEED" in notes[-1]
    assert chosen_template("auto", {"base": models["base"]})[0] is None
    assert chosen_template("a {{ text }}", models) == ("a {{ text }}", [])


def test_what_mergekit_would_not_take_is_refused():
    assert check_template(None) is None and check_template("auto") == "auto"
    assert check_template("{{ messages[0].content }}") == "{{ messages[0].content }}"
    for wrong in ("{{ short }}", "no template at all, but a long text", 3):
        with pytest.raises(UserError, match="is no template; give its text, or auto"):
            check_template(wrong)
    with pytest.raises(UserError, match="chatml is a file of mergekit"):
        check_template("chatml")


def test_a_written_template_is_the_only_one(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("t")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"a": 1, "chat_template": "x"}))
    write_template(tmp_path, "own")
    assert {p.name for p in tmp_path.iterdir()} == {"chat_template.jinja", "tokenizer_config.json"}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"a": 1}
    assert (tmp_path / "chat_template.jinja").read_text() == "own"
