"""The losses of the world's record are over every calibration row, each counted once."""

import json

from bottle.tiny import write_family


def test_the_mean_loss_is_that_of_all_rows(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks import world
    from bottle.tokenizer import load_tokenizer

    write_family(tmp_path, items=2, seed=3)
    (tmp_path / "models").mkdir()
    for name in ("base", "ja"):
        (tmp_path / name).rename(tmp_path / "models" / name)
    rows = [json.loads(x) for x in (tmp_path / "data/calibration/ja.jsonl").open(encoding="utf-8")]
    monkeypatch.setattr(world, "ROWS", 16)
    found = world.lines(tmp_path, ["ja"])["base - ja"][0]

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models/base", dtype=torch.float64)
    tokenizer = load_tokenizer(tmp_path / "data/tokenizer")
    total = count = 0.0
    for row in rows[:16]:
        prompt, answer = (
            tokenizer.encode(row[part], add_special_tokens=False).ids
            for part in ("prompt", "answer")
        )
        ids = torch.tensor([[1, *prompt, *answer, *([2] if row["eos"] else [])]])
        with torch.no_grad():
            chances = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        for place in range(len(prompt), ids.shape[1] - 1):
            total -= float(chances[place, ids[0, place + 1]])
            count += 1
    assert abs(found - total / count) < 1e-5 * abs(found)
