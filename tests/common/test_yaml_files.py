"""YAML from others is read, or ends in one line that says why not."""

import os
import subprocess
import sys

import pytest
import yaml

from common.calling import call
from common.errors import UserError
from common.yaml_files import read_yaml
from merges.mergekit.translation import translate

NESTED = "a: " + "[" * 70 + "]" * 70  # harmless: every reader takes it
MALFORMED = {
    "nested too deep": NESTED,
    "a tag that its value contradicts": "a: !!int abc",
    "a truth that is none": "a: !!bool abc",
    "a number that is none": "a: !!float abc",
    "a month that is none": "a: 2024-13-45",
    "an hour that is none": "a: 2024-02-31 25:61:61",
    "a time that is none": "a: !!timestamp abc",
    "a control character": "a: \x01",
    "a mapping as a key": "{[a]: {}}: 1\n? {b: 1}\n: 2",
    "no YAML": "a: [",
}


def write(folder, text):
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_yaml_is_told_in_one_line(tmp_path, kind):
    with pytest.raises(UserError, match=r"a\.yaml: not valid YAML \(") as told:
        read_yaml(write(tmp_path, MALFORMED[kind]))
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_what_is_no_text_is_told(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        read_yaml(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        read_yaml(tmp_path / "a.yaml")


def test_standard_input_may_be_a_pipe():
    code = "from pathlib import Path; from common.yaml_files import read_yaml as r; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(r(Path('/dev/stdin')))"],
        input="a: [1, 2]",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "{'a': [1, 2]}\n"), done.stderr


def test_a_file_over_the_limit_is_not_parsed(tmp_path):
    with pytest.raises(UserError, match="larger than 1 MB"):
        read_yaml(write(tmp_path, "# " + "a" * (1 << 20)))


def test_what_is_within_the_bounds_is_what_pyyaml_reads(tmp_path):
    text = f"a: &b [1, 2.5, x, 2024-01-01]\nc: *b\nd: {'[' * 60}{']' * 60}\n"
    assert read_yaml(write(tmp_path, text)) == yaml.safe_load(text)


def test_aliases_are_refused_in_recipes_of_others(tmp_path):
    recipe = "merge_method: linear\nmodels: &m []\nslices: *m\n"
    with pytest.raises(UserError, match=r"alias \*m: write the value out"):
        translate(write(tmp_path, recipe))


def test_an_error_line_shows_control_characters_and_has_an_end(tmp_path, capfd, monkeypatch):
    (tmp_path / "program.py").write_text(
        "from common.errors import UserError\n"
        "def main(arguments):\n"
        "    raise UserError('a\\x1b[2Jb\\nc\\u202ed 猫 ' + 'x' * 10_000 + ' end')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert call("program", []) == 2
    said = capfd.readouterr().err
    assert said.startswith(r"error: a\x1b[2Jb\nc\u202ed 猫 x") and said.endswith("x end\n")
    assert said.count("\n") == 1 and len(said) < 4_100
