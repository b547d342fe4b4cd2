"""A base, three experts and their data, and the obvious implementation of DAM to compare with."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from checkpoints.reading import Checkpoint
from merges.engine.requests import WholeModelRequest

EXPERTS = ("one", "two", "three")
ROWS = 24
HEAD_DIM = 8
EVERY_TERM = {
    "kl": 1.0, "js": 0.4, "mse": 0.3, "entropy": 0.2,
    "cosine": 0.1, "l1": 0.01, "l2": 0.02, "overlap": 0.03,
}  # fmt: skip
OUTPUT_TERMS = ("kl", "js", "mse", "entropy")


def write_rows(path, seed, rows=ROWS):
    """Write calibration rows of random words."""
    draws = random.Random(seed)

    def words(low, high):
        return " ".join(f"w{draws.randrange(4, 48)}" for _ in range(draws.randint(low, high)))

    lines = (
        {"task": "t", "prompt": words(1, 9), "answer": f" {words(1, 4)}", "eos": number % 3 > 0}
        for number in range(rows)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_world(folder, make_model, architecture, dtype, **changes):
    """Make base, three experts near it, and their data; return a request."""
    generator = torch.Generator().manual_seed(7)
    make_model(folder / "base", architecture, **changes)
    base = load_file(folder / "base" / "model.safetensors")
    for name in ("base", *EXPERTS):
        make_model(folder / name, architecture, **changes)
        moved = {
            key: (value + (name != "base") * 0.1 * torch.randn(value.shape, generator=generator))
            .to(dtype)
            .contiguous()
            for key, value in base.items()
        }
        save_file(moved, folder / name / "model.safetensors", metadata={"format": "pt"})
    return WholeModelRequest(
        base=Checkpoint(folder / "base"),
        experts={name: Checkpoint(folder / name) for name in EXPERTS},
        calibration={
            name: write_rows(folder / f"{name}.jsonl", seed) for seed, name in enumerate(EXPERTS)
        },
        teachers=None,
        seed=0,
        embeddings_and_norms="base",
        threads=1,
    )


@functools.lru_cache(maxsize=8)
def plain_model(path, dtype):
    """Load a model with transformers, with norms and attention that keep float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon, dtype=dtype)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.eval().requires_grad_(False)


def leaves(named):
    """Return copies that require their gradients."""
    return {key: value.clone().requires_grad_() for key, value in named.items()}


class Plain:
    """DAM term by term, sample by sample, with whole logits and every product kept by autograd.

    Args:
        request: The models.
        dtype: Of all arithmetic.
        **form: granularity, transform, task_vectors, base_source, embeddings, norms, unmerged,
            teacher_embeddings, merge_lm_head as `Parameters` has them.
    """

    def __init__(self, request, dtype, **form):
        self.base = plain_model(request.base.path, dtype)
        self.experts = [plain_model(expert.path, dtype) for expert in request.experts.values()]
        self.origin = dict(self.base.named_parameters())
        self.weights = [dict(expert.named_parameters()) for expert in self.experts]
        self.average = request.embeddings_and_norms == "merged"
        self.form = form
        if form.get("base_source"):
            self.models = [self.origin, *self.weights]
        else:
            self.models = self.weights

    def kind(self, name):
        if "_proj." in name or name == "lm_head.weight":
            return "linear"
        return "embeddings" if "embed_tokens" in name else "norms"

    def is_merged(self, name):
        if name == "lm_head.weight" and not self.form.get("merge_lm_head", True):
            return False
        return self.kind(name) == "linear" or self.form.get(self.kind(name), "frozen") != "frozen"

    def unmerged(self, name):
        own = [weights[name] for weights in self.weights]
        if self.form.get("unmerged") == "tanh_mean":
            return math.tanh(1 / len(own)) * sum(own)
        return sum(own) / len(own) if self.average else self.origin[name]

    def scaled(self, name, c, weight):
        """One model's share of a parameter: its coefficients times its weight."""
        granularity, layer = self.form.get("granularity", "column"), name.split(".")[-2]
        if name.endswith(".bias") or len(c) == 1:
            return c * weight
        if self.kind(name) == "norms":
            return torch.diag(c) @ weight
        if self.kind(name) == "embeddings" or granularity in ("column", "common_column"):
            return weight @ torch.diag(c)
        if granularity == "row":
            return torch.diag(c) @ weight
        assert granularity == "head"
        by_dimension = torch.stack([c[i // HEAD_DIM] for i in range(HEAD_DIM * len(c))])
        if layer == "o_proj":
            return weight @ torch.diag(by_dimension)
        return torch.diag(by_dimension) @ weight

    def parameters(self, raw):
        """Merge, from trained values by parameter name."""
        transform = {
            "none": lambda x: x,
            "tanh": torch.tanh,
            "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
            "relu": lambda x: torch.where(x > 0, x, 0.0),
            "clamp": lambda x: torch.where((x > 0) & (x < 1), x, x.detach().clamp(0, 1)),
        }[self.form.get("transform", "none")]
        result = {}
        for name, value in self.origin.items():
            if not self.is_merged(name):
                result[name] = self.unmerged(name)
                continue
            c = transform(raw[name] if name in raw else raw["model"])
            c = c.reshape(len(c), -1)
            if self.form.get("granularity") == "common_column":
                c = torch.cat([c] * len(self.models))
            result[name] = torch.zeros_like(value)
            if self.form.get("task_vectors"):
                result[name] = value
            for row, model in zip(c, self.models, strict=True):
                moved = model[name] - value if self.form.get("task_vectors") else model[name]
                result[name] = result[name] + self.scaled(name, row, moved)
        return result

    def teacher(self, index):
        if self.form.get("teacher_embeddings") != "merged":
            return self.weights[index]
        return {
            name: weight if self.is_merged(name) else self.unmerged(name)
            for name, weight in self.weights[index].items()
        }

    def logits(self, data, rows, parameters):
        pieces = []
        for row in rows:
            ids = data.ids[data.starts[row] : data.starts[row + 1]]
            inputs = {"input_ids": ids[None], "use_cache": False}
            output = torch.func.functional_call(self.base, parameters, (), inputs)
            pieces.append(output.logits[0])
        return pieces

    def terms(self, raw, data, rows, tokens="all", temperature=2.0, direction="teacher||merged",
              formulas="code", last=False):  # fmt: skip
        """Return every term of a step, from trained values by parameter name."""
        parameters = self.parameters(raw)
        terms = dict.fromkeys(EVERY_TERM, 0.0)
        for index in range(len(self.weights)):
            spans = [data[index].loss_span(row, tokens, last) for row in rows[index]]
            ours, theirs = (
                torch.cat(
                    [
                        logits[slice(*span)]
                        for logits, span in zip(
                            self.logits(data[index], rows[index], weights), spans, strict=True
                        )
                    ]
                )
                for weights in (parameters, self.teacher(index))
            )
            log_p, log_q = (F.log_softmax(x / temperature, -1) for x in (ours, theirs))
            middle = ((log_p.exp() + log_q.exp()) / 2).log()
            if direction == "merged||teacher":
                kl = F.kl_div(log_q, log_p.exp(), reduction="batchmean")
            else:
                kl = F.kl_div(log_p, log_q.exp(), reduction="batchmean")
            both = (F.kl_div(middle, x.exp(), reduction="batchmean") for x in (log_p, log_q))
            terms["kl"] += temperature**2 * kl
            terms["js"] += temperature**2 * sum(both) / 2
            if formulas == "paper":
                terms["mse"] += ((ours - theirs) ** 2).sum(-1).mean() / len(self.weights)
            else:
                terms["mse"] += F.mse_loss(ours, theirs)
            terms["entropy"] -= temperature**2 * (log_p.exp() * log_p).sum(-1).mean()
        for name, c in raw.items():
            if not name.endswith("bias"):
                self.add_penalties(terms, c, formulas)
        return terms

    def add_penalties(self, terms, c, formulas):
        pairs = list(itertools.combinations(c, 2))
        terms["l1"] += c.abs().sum()
        squares = [(row**2).sum() for row in c]
        terms["l2"] += sum(squares) if formulas == "paper" else sum(x.sqrt() for x in squares)
        if pairs:
            count = 1 if formulas == "paper" else len(pairs)
            terms["cosine"] += sum(F.cosine_similarity(*pair, dim=0) for pair in pairs) / count
            overlaps = sum(torch.min(a.abs(), b.abs()).sum() for a, b in pairs)
            terms["overlap"] += overlaps / len(pairs)
