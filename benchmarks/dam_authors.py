"""DAM as its authors train it, as a plain program; `benchmarks/dam.py` compares with it.

Every sample of a training row is padded to one length and goes through its expert, for the full
logits, and through the merged model, whose merged weights every forward builds anew and autograd
keeps until the one backward over all samples.

Source:
    Gauthier-Caron et al., arXiv:2410.08371, and their released trainer: tanh of the
    coefficients, embeddings and norms frozen at tanh(1/N) times the experts' sum, KL(teacher ||
    merged) over all tokens, MoFO-AdamW (arXiv:2407.20999) with weight decay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

TEMPERATURE = 2.0
COSINE, L1, L2 = 0.01, 1e-6, 1e-6
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.01, 1.0
BETAS, EPSILON, FRACTION = (0.9, 0.999), 1e-8, 0.3


class CombinedLinear(nn.Module):
    """A linear layer with the weight sum_i W_i diag(tanh(c_i)), by ordinary autograd.

    Args:
        weights: N frozen weights (out_features, in_features).
        dtype: The type of the coefficients.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = list(weights)
        self.coefficients = nn.ParameterList(
            torch.full((weight.shape[1],), 1 / len(weights), dtype=dtype, device=weight.device)
            for weight in weights
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        first, *others = (
            weight * torch.tanh(coefficients).to(weight.dtype)
            for weight, coefficients in zip(self.weights, self.coefficients, strict=True)
        )
        return F.linear(inputs, sum(others, first))


class Mofo:
    """AdamW that moves, of each tensor, the share with the largest momenta."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Do one update from the parameters' gradients."""
        self._steps += 1
        corrections = [1 - beta**self._steps for beta in BETAS]
        states = zip(self._parameters, self._means, self._squares, strict=True)
        for parameter, mean, square in states:
            gradient = parameter.grad
            assert gradient is not None
            mean.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            kept = max(1, int(mean.numel() * FRACTION))
            moved = mean.abs() >= mean.abs().topk(kept).values[-1]
            step = mean / corrections[0] / ((square / corrections[1]).sqrt() + EPSILON)
            parameter.mul_(1 - LEARNING_RATE * WEIGHT_DECAY)
            parameter.sub_(LEARNING_RATE * step * moved)


def load_models(folders: Sequence[Any]) -> list[Any]:
    """Load checkpoints as transformers does, frozen, in the types they are stored in."""
    return [
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto").requires_grad_(False).eval()
        for folder in folders
    ]


class AuthorsTrainer:
    """The training, one step per row of N samples.

    Args:
        teachers: The N experts, whose weights the merged model shares.
        dtype: The coefficients' type; the authors' is bfloat16.
    """

    def __init__(self, teachers: Sequence[Any], dtype: torch.dtype = torch.float32) -> None:
        self.teachers = list(teachers)
        first = self.teachers[0]
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(first.config).eval()
        self.model.model.rotary_emb = first.model.rotary_emb
        self.layers: dict[str, CombinedLinear] = {}
        for name, module in list(self.model.named_modules()):
            own = [teacher.get_submodule(name) for teacher in self.teachers]
            if isinstance(module, nn.Linear):
                self.layers[name] = CombinedLinear([layer.weight for layer in own], dtype)
                self.model.set_submodule(name, self.layers[name])
            elif module._parameters:
                total = sum(layer.weight.float() for layer in own)
                value = (total * math.tanh(1 / len(own))).to(own[0].weight.dtype)
                module.weight = nn.Parameter(value, requires_grad=False)
        self.parameters = [c for layer in self.layers.values() for c in layer.coefficients]
        self._optimizer = Mofo(self.parameters)

    def _penalties(self) -> Tensor:
        total = torch.zeros((), device=self.parameters[0].device)
        for layer in self.layers.values():
            pairs = list(itertools.combinations(layer.coefficients, 2))
            similar = sum(F.cosine_similarity(a, b, dim=0) for a, b in pairs)
            total = total + COSINE * similar / len(pairs)
            for own in layer.coefficients:
                total = total + L1 * own.abs().sum() + L2 * own.norm()
        return total

    def _divergence(self, teacher: nn.Module, ids: Tensor, length: int) -> Tensor:
        """T^2 KL(teacher || merged), the mean over a sample's tokens."""
        padding = max(length - len(ids), 0)
        inputs = F.pad(ids, (0, padding))[None]
        mask = F.pad(torch.ones_like(ids), (0, padding))[None]
        with torch.no_grad():
            expected = teacher(input_ids=inputs, attention_mask=mask, use_cache=False).logits
        logits = self.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
        each = F.kl_div(
            F.log_softmax(logits.float() / TEMPERATURE, -1),
            F.softmax(expected.float() / TEMPERATURE, -1),
            reduction="none",
        ).sum(-1)
        return TEMPERATURE**2 * (each * mask).sum() / mask.sum()

    def step(self, samples: Sequence[Tensor], length: int = 0) -> float:
        """Do one optimiser step.

        Args:
            samples: One sample (tokens,) per expert, from that expert's data.
            length: What the samples are padded to; 0 for no padding.

        Returns:
            The loss before the update.
        """
        for parameter in self.parameters:
            parameter.grad = None
        loss = self._penalties()
        for teacher, ids in zip(self.teachers, samples, strict=True):
            loss = loss + self._divergence(teacher, ids, length)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self._optimizer.step()
        return loss.item()

    def gradients(self) -> dict[str, Tensor]:
        """Return the last step's gradients, clipped, (N, in_features) by parameter name."""
        return {
            f"{name}.weight": torch.stack([c.grad for c in layer.coefficients])
            for name, layer in self.layers.items()
        }
