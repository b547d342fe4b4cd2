"""Calibration data: tokens, loss positions, draws, packed batches, and bad files."""

from __future__ import annotations

import json

import pytest
import torch

from common.errors import UserError
from merges.dam.attention import packed_attention
from merges.dam.data import count_loss_tokens, draw, make_batch, read_calibration, split
from merges.dam.packing import Packing


@pytest.fixture(scope="module")
def tokenizer(make_model, tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(prompt, answer, eos=True):
    return {"task": "t", "prompt": prompt, "answer": answer, "eos": eos}


@pytest.fixture
def data(tmp_path, tokenizer):
    path = write(
        tmp_path / "a.jsonl", row("w4 w5 w6", " w7 w8"), row("w9", " w10", eos=False), row("", "w4")
    )
    return read_calibration("a", path, tokenizer, 64)


def test_tokens_and_loss_positions(data):
    assert data.ids.tolist() == [1, 4, 5, 6, 7, 8, 2, 1, 9, 10, 1, 4, 2]
    assert list(data.starts) == [0, 7, 10, 13]
    # Every position but the last predicts a token; those before w7, w8 and </s> the answer.
    assert data.loss_span(0, "all") == (0, 6)
    assert data.loss_span(0, "answer") == (3, 6)
    assert data.loss_span(1, "answer") == (1, 2)
    assert data.loss_span(2, "answer") == (0, 2)
    # The last position predicts what follows the row.
    assert data.loss_span(0, "all", last=True) == (0, 7)
    assert data.loss_span(1, "answer", last=True) == (1, 3)


def test_last_positions_in_a_batch(data):
    batch = make_batch([data, data], [[1], [2]], "answer", last=True)
    assert batch.loss.tolist() == [1, 2, 3, 4, 5]
    assert batch.segments == [(0, 2), (2, 5)]
    assert [source.tolist() for source in batch.sources] == [[8, 9], [10, 11, 12]]


def test_split_keeps_samples_whole_and_in_order(data):
    rows = [[0, 1], [2, 1, 0]]  # of 7, 3; 3, 3 and 7 tokens
    assert split([data, data], rows, 0) == [rows]
    assert split([data, data], rows, 23) == [rows]
    assert split([data, data], rows, 9) == [[[0], []], [[1], [2, 1]], [[], [0]]]
    assert split([data, data], rows, 1) == [
        [[0], []], [[1], []], [[], [2]], [[], [1]], [[], [0]]
    ]  # fmt: skip


def test_count_of_loss_tokens(data):
    assert count_loss_tokens([data, data], [[0, 1], [2]], "all") == [8, 2]
    assert count_loss_tokens([data, data], [[0, 1], [2]], "answer") == [4, 2]
    assert count_loss_tokens([data, data], [[0, 1], [2]], "answer", last=True) == [6, 3]


def test_packed_batch_keeps_datasets_in_order(data):
    batch = make_batch([data, data], [[1, 0], [2]], "answer")
    assert batch.ids.tolist() == [1, 9, 10, 1, 4, 5, 6, 7, 8, 2, 1, 4, 2]
    assert batch.packing.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert batch.loss.tolist() == [1, 6, 7, 8, 10, 11]
    assert batch.segments == [(0, 4), (4, 6)]
    assert [source.tolist() for source in batch.sources] == [[8, 3, 4, 5], [10, 11]]
    assert [data.ids[source].tolist() for source in batch.sources] == [
        batch.ids[batch.loss[:4]].tolist(),
        batch.ids[batch.loss[4:]].tolist(),
    ]


def test_packing_indices_undo_each_other(data):
    packing = make_batch([data], [[0, 1, 2]], "all").packing
    padded = torch.arange(13)[packing.to_padded]
    assert padded.view(3, 7)[1].tolist() == [7, 8, 9, 9, 9, 9, 9]
    assert padded[packing.to_packed].tolist() == list(range(13))


@pytest.mark.parametrize("short", [64, 0])
@pytest.mark.parametrize("window", [None, 3])
def test_packed_attention_is_attention_of_each_sample(short, window, monkeypatch):
    monkeypatch.setattr("merges.dam.attention.SHORT", short)
    packing = Packing([4, 1, 6])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 11, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    upstream = torch.randn(1, 11, 4, 8, generator=generator, dtype=torch.float64)
    expected = []
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        scores = q @ k.mT * 0.3
        for i in range(stop - start):
            for j in range(stop - start):
                if j > i or (window and i - j >= window):
                    scores[:, :, i, j] = -1e30
        expected.append((scores.softmax(-1) @ v).transpose(1, 2))
    expected = torch.cat(expected, 1)
    actual, _ = packed_attention(
        None, query, key, value, None, packing=packing, scaling=0.3, sliding_window=window
    )
    inputs = (query, key, value)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        rtol=1e-10,
        atol=1e-12,
    )


def test_draw_is_seeded_and_without_replacement(tmp_path, tokenizer):
    path = write(tmp_path / "many.jsonl", *(row(f"w{4 + i}", " w4") for i in range(40)))
    data = [read_calibration(name, path, tokenizer, 64) for name in "ab"]
    first, again, other = (draw(data, 30, 2, seed) for seed in (0, 0, 1))
    assert first == again
    for mine, theirs in zip(first, other, strict=True):
        assert len(mine) == 60
        assert len(set(mine[:30])) == 30
        assert set(mine[:30]) == set(mine[30:])
        assert mine[:30] != mine[30:]
        assert set(mine) != set(theirs)
    assert first[0] != first[1]
    with pytest.raises(UserError, match="40 calibration rows, the training was asked for 41"):
        draw(data, 41, 1, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expert a has an empty calibration file"),
        ([{"prompt": "w4", "eos": True}], "line 1: no 'answer'"),
        (
            [row("w4", " w5"), row(" ".join(["w4"] * 64), " w5")],
            "line 2: .*67 tokens.* context of 64",
        ),
        ([row("", "", eos=False)], "line 1: the row has no token to predict"),
    ],
)
def test_bad_calibration_files_are_refused(rows, message, tmp_path, tokenizer):
    path = write(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(UserError, match=message):
        read_calibration("a", path, tokenizer, 64)


def test_missing_file_and_broken_line_are_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no such file"):
        read_calibration("a", tmp_path / "none.jsonl", tokenizer, 64)
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": \n')
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        read_calibration("a", path, tokenizer, 64)


def test_rows_without_answer_need_all_tokens(tmp_path, tokenizer):
    path = write(tmp_path / "plain.jsonl", row("w4 w5", "", eos=False))
    data = read_calibration("a", path, tokenizer, 64)
    assert make_batch([data], [[0]], "all").segments == [(0, 2)]
    with pytest.raises(UserError, match=r"rows \[1\] of expert a have no answer token"):
        count_loss_tokens([data], [[0]], "answer")
