"""Files beside the weights are copied from their folder and from nowhere else."""

import pytest

from checkpoints.writing import copy_companions
from common.errors import UserError


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_text("not for others")
    return tmp_path / "secret"


def made(folder):
    folder.mkdir(parents=True)
    return folder


def test_a_link_that_leaves_the_folder_is_refused(tmp_path, secret):
    donor, out = made(tmp_path / "donor"), made(tmp_path / "out")
    (donor / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(UserError, match=r"donor/chat_template\.jinja: a link that ends outside"):
        copy_companions([donor], out)
    assert not list(out.iterdir())


def test_links_within_the_folder_and_to_it_are_followed(tmp_path):
    donor, out = made(tmp_path / "donor"), made(tmp_path / "out")
    (donor / "kept").write_text("t")
    (donor / "chat_template.jinja").symlink_to("kept")
    (tmp_path / "alias").symlink_to(donor)
    copy_companions([tmp_path / "alias"], out)
    assert (out / "chat_template.jinja").read_text() == "t"


def test_the_hubs_cache_is_made_of_links_to_its_blobs(tmp_path):
    top, out = tmp_path / "models--a--b", made(tmp_path / "out")
    made(top / "blobs").joinpath("0f").write_text("t")
    donor = made(top / "snapshots" / "revision")
    (donor / "tokenizer.json").symlink_to("../../blobs/0f")
    copy_companions([donor], out)
    assert (out / "tokenizer.json").read_text() == "t"
    # Another folder of that name is no repository of the hub.
    other = made(tmp_path / "x" / "snapshots" / "revision")
    made(tmp_path / "x" / "blobs").joinpath("0f").write_text("t")
    (other / "tokenizer.json").symlink_to("../../blobs/0f")
    with pytest.raises(UserError, match="ends outside"):
        copy_companions([other], out)
    # Neither another repository's files nor others of this one.
    (top / "other").write_text("x")
    (donor / "vocab.json").symlink_to("../../other")
    with pytest.raises(UserError, match="ends outside"):
        copy_companions([donor], out)
