"""The kinds of statistics, and what each is made of; read by the registry without torch."""

from __future__ import annotations

# What `python -m merges statistics --collect` takes. The first two need a forward pass alone.
KINDS = {
    "channels": "mean |x| and mean x^2 of every input channel of the linear layers",
    "gram": "the same, and the Gram matrix E[x x^T] of every distinct input",
    "fisher": "diagonal Fisher information, labels drawn from the model's own predictions",
    "empirical_fisher": "diagonal Fisher information of the data's labels, on answers' tokens",
    "gradients": "mean |dL/dW| of every weight for the data's answers",
    "kronecker": "Gram matrices of the inputs and of the gradients at the outputs, for answers",
}
BACKWARD = ("fisher", "empirical_fisher", "gradients", "kronecker")
