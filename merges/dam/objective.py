"""What DAM minimises: a weighted sum of output terms and coefficient penalties.

Output terms compare the merged model's logits with the teacher's (or look at them alone); their
gradients are in closed form, because the loss is computed in chunks of tokens whose logits are
not kept. Penalties see the coefficients only and are left to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError, nearest

KL_DIRECTIONS = ("teacher||merged", "merged||teacher")
FORMULAS = ("code", "paper")
OUTPUT_TERMS = ("kl", "js", "mse", "entropy")
PENALTIES = ("cosine", "l1", "l2", "overlap")


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms.

    Attributes:
        weights: Weight by term name. Output terms (``kl``, ``js``, ``mse``, ``entropy``) are means
            over a dataset's tokens summed over the datasets; ``cosine``, ``l1``, ``l2`` and
            ``overlap`` act on the coefficients.
        temperature: Divides the logits of ``kl``, ``js`` and ``entropy``, whose values are
            multiplied by its square.
        kl_direction: As for `merges.dam.method.dam`.
        formulas: As there.
        datasets: Number of datasets, for the paper's ``mse``.

    Raises:
        UserError: An unknown term or direction, a weight that is not a finite number, no output
            term, or a temperature that is not positive.
    """

    weights: Mapping[str, float]
    temperature: float = 2.0
    kl_direction: str = KL_DIRECTIONS[0]
    formulas: str = FORMULAS[0]
    datasets: int = 1

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in OUTPUT_TERMS + PENALTIES:
                hint = nearest(name, OUTPUT_TERMS + PENALTIES)
                raise UserError(f"DAM's objective has no term {name!r}{hint}")
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise UserError(
                    f"DAM's objective: the weight of {name} is {weight!r}; give a number"
                )
            if not math.isfinite(weight):
                raise UserError(
                    f"DAM's objective: the weight of {name} is {weight}; give a finite number"
                )
        if not any(self.weights.get(name) for name in OUTPUT_TERMS):
            raise UserError(
                "DAM's objective needs at least one of kl, js, mse and entropy with a weight other "
                "than 0; the other terms see only the coefficients"
            )
        if self.kl_direction not in KL_DIRECTIONS:
            hint = nearest(self.kl_direction, KL_DIRECTIONS)
            raise UserError(f"DAM has no KL direction {self.kl_direction!r}{hint}")
        if self.formulas not in FORMULAS:
            hint = nearest(self.formulas, FORMULAS)
            raise UserError(f"DAM has no formulas {self.formulas!r}{hint}")
        if not self.temperature > 0:
            raise UserError(f"DAM's temperature is {self.temperature}; it must be positive")

    @property
    def terms(self) -> list[str]:
        """Names of the terms that count, output terms first."""
        return [name for name in OUTPUT_TERMS + PENALTIES if self.weights.get(name)]

    @property
    def output_terms(self) -> list[str]:
        """Names of the output terms that count."""
        return [name for name in OUTPUT_TERMS if self.weights.get(name)]

    @property
    def needs_teachers(self) -> bool:
        """Whether a term compares with the experts' logits."""
        return any(self.weights.get(name) for name in ("kl", "js", "mse"))

    def output_term(self, name: str) -> Callable[[Tensor, Any], tuple[Tensor, Tensor]]:
        """Return an output term as a function of logits.

        Args:
            name: ``kl``, ``js``, ``mse`` or ``entropy``.

        Returns:
            A function of the merged model's logits and the teacher's, both (tokens, vocabulary).
            It returns the term's sum over these tokens (a scalar) and the gradient of that sum
            with respect to the merged logits.
        """
        if name == "mse":
            return squared_error if self.formulas == "code" else self._paper_squared_error
        term = {
            "js": jensen_shannon,
            "entropy": entropy,
            KL_DIRECTIONS[0]: kl_teacher_merged,
            KL_DIRECTIONS[1]: kl_merged_teacher,
        }[self.kl_direction if name == "kl" else name]
        return lambda logits, teacher: term(logits, teacher, self.temperature)

    def _paper_squared_error(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = squared_error(logits, teacher)
        factor = logits.shape[-1] / self.datasets
        return value * factor, gradient.mul_(factor)

    def penalties(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute the coefficient penalties that count, unweighted.

        Args:
            columns: Coefficients by number, each (parameters, N, coefficients).

        Returns:
            A scalar with its graph for each penalty, by name.
        """
        paper = self.formulas == "paper"
        functions = {
            "cosine": cosine_over_pairs if paper else cosine,
            "l1": l1,
            "l2": squared_l2 if paper else l2,
            "overlap": overlap,
        }
        return {
            name: sum((functions[name](block) for block in columns), torch.zeros(()))
            for name in PENALTIES
            if self.weights.get(name)
        }


def kl_teacher_merged(logits: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL(q || p) with p, q the softmax of merged and teacher logits over T; gradient T (p - q).

    Args:
        logits: Merged logits (tokens, vocabulary).
        teacher: Teacher's logits of the same shape.
        temperature: T.

    Returns:
        The sum over tokens and its gradient with respect to the merged logits.

    Source:
        The authors' code (arcee-ai/DAM, `kl_divergence_loss`).
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    log_q = torch.log_softmax(teacher / temperature, -1)
    q = log_q.exp()
    value = torch.dot(q.view(-1), log_q.sub_(log_p).view(-1))
    return value * temperature**2, log_p.exp_().sub_(q).mul_(temperature)


def kl_merged_teacher(logits: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL(p || q); gradient T p (log p - log q - KL). Arguments as `kl_teacher_merged`.

    Source:
        arXiv:2410.08371, equation of the KL loss.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    log_q = torch.log_softmax(teacher / temperature, -1)
    p = log_p.exp()
    ratio = log_p.sub_(log_q)
    each = torch.linalg.vecdot(p, ratio).unsqueeze(-1)
    return each.sum() * temperature**2, ratio.sub_(each).mul_(p).mul_(temperature)


def jensen_shannon(logits: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2. Arguments as `kl_teacher_merged`.

    The gradient is T p (r - p.r) with r = log(p / m) / 2.

    Source:
        Lin, IEEE Trans. Inf. Theory 37 (1991), with equal weights.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    log_q = torch.log_softmax(teacher / temperature, -1)
    log_m = torch.logaddexp(log_p, log_q).sub_(math.log(2))
    p = log_p.exp()
    ours = log_p.sub_(log_m).mul_(0.5)
    each = torch.linalg.vecdot(p, ours).unsqueeze(-1)
    theirs = torch.dot(log_q.exp().view(-1), log_q.sub_(log_m).view(-1)) / 2
    value = (each.sum() + theirs) * temperature**2
    return value, ours.sub_(each).mul_(p).mul_(temperature)


def squared_error(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Squared difference of the logits, mean over the vocabulary. Arguments as `kl_teacher_merged`.

    Source:
        The authors' code (arcee-ai/DAM, `mse_loss`); the paper omits the vocabulary's mean.
    """
    difference = logits - teacher
    size = logits.shape[-1]
    value = torch.dot(difference.view(-1), difference.view(-1)) / size
    return value, difference.mul_(2 / size)


def entropy(logits: Tensor, _: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 H(p) of the merged model's own predictions; gradient -T p (log p + H).

    Arguments as `kl_teacher_merged`; the teacher's logits are not used.

    Source:
        The authors' code (arcee-ai/DAM, `entropy_loss`), after AdaMerging, arXiv:2310.02575.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    p = log_p.exp()
    each = torch.linalg.vecdot(p, log_p).neg_().unsqueeze(-1)
    return each.sum() * temperature**2, log_p.add_(each).mul_(p).mul_(-temperature)


def _pairs(models: int, device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(models, models, offset=1, device=device)
    return first, second


def cosine(coefficients: Tensor) -> Tensor:
    """Cosine similarity of two models' coefficients, mean over pairs, summed over parameters.

    Args:
        coefficients: (parameters, N, coefficients).

    Returns:
        A scalar; 0 for N = 1.

    Source:
        The authors' code (`compute_mergers_similarity`); the paper sums over the pairs.
    """
    first, second = _pairs(coefficients.shape[1], coefficients.device)
    if not len(first):
        return coefficients.new_zeros(())
    norms = torch.linalg.vector_norm(coefficients, dim=-1, keepdim=True).clamp_min(1e-8)
    unit = coefficients / norms
    return (unit @ unit.transpose(1, 2))[:, first, second].mean(1).sum()


def cosine_over_pairs(coefficients: Tensor) -> Tensor:
    """Cosine similarity as `cosine`, summed over the pairs of models.

    Source:
        arXiv:2410.08371, equation of the cosine term.
    """
    models = coefficients.shape[1]
    return cosine(coefficients) * (models * (models - 1) / 2)


def l1(coefficients: Tensor) -> Tensor:
    """Sum of the absolute coefficients (parameters, N, coefficients)."""
    return coefficients.abs().sum()


def l2(coefficients: Tensor) -> Tensor:
    """Euclidean norm of each parameter's coefficients of each model, summed as in `l1`.

    Source:
        The authors' code (`compute_mergers_L1_L2_reg`); the paper squares the norm.
    """
    return torch.linalg.vector_norm(coefficients, dim=-1).sum()


def squared_l2(coefficients: Tensor) -> Tensor:
    """Sum of the squared coefficients (parameters, N, coefficients).

    Source:
        arXiv:2410.08371, equation of the regularisation.
    """
    return coefficients.square().sum()


def overlap(coefficients: Tensor) -> Tensor:
    """Overlap sum_j min(|c_ij|, |c_kj|), mean over pairs of models, summed as in `cosine`.

    Source:
        The authors' code (`compute_weighted_overlap` with equal weights).
    """
    first, second = _pairs(coefficients.shape[1], coefficients.device)
    if not len(first):
        return coefficients.new_zeros(())
    size = coefficients.abs()
    return torch.minimum(size[:, first], size[:, second]).sum(-1).mean(1).sum()
