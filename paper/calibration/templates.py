"""Templates: how an instruction becomes the text that stands before its answer."""

from __future__ import annotations

# As the paper prints it; it shows no variant with an input beside the instruction.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)

TEMPLATES = {"alpaca": _ALPACA, "plain": "{instruction}"}


def prompt_of(template: str, instruction: str) -> str:
    """Put an instruction into a template.

    Args:
        template: ``alpaca`` or ``plain``, the instruction as it stands.
        instruction: The text; empty for data that are no instructions.

    Returns:
        The prompt.

    Source:
        The Alpaca template as arXiv:2410.08371 prints it.
    """
    return TEMPLATES[template].replace("{instruction}", instruction)
