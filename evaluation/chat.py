"""Prompts in a tokenizer's chat template, as lm-eval writes them with its own options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from common.errors import UserError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, str]]


def chat_settings(tokenizer: PreTrainedTokenizerBase, folder: Path | str) -> dict[str, Any]:
    """Return what lm-eval's tasks take to build requests with a chat template.

    Args:
        tokenizer: The models' tokenizer.
        folder: Where it came from, for messages.

    Raises:
        UserError: It has no template, or one that fails on a question.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{folder}: its tokenizer has no chat template; leave out --chat-template, or name a "
            "folder whose tokenizer has one (--tokenizer DIR)"
        )

    def render(turns: Turns, add_generation_prompt: bool = True) -> str:
        return tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def template(turns: Turns, add_generation_prompt: bool = True) -> str:
        try:
            return render(turns, add_generation_prompt)
        except jinja2.exceptions.TemplateError:
            # As lm-eval: many templates know no system turn.
            others = [turn for turn in turns if turn["role"] != "system"]
            return render(others, add_generation_prompt)

    try:
        template([{"role": "user", "content": "1 + 1 = ?"}])
    except Exception as error:  # whatever a template makes of it
        raise UserError(
            f"{folder}: its chat template fails on a question ({reason_of(error)}); correct the "
            "template or leave out --chat-template"
        ) from None
    return {
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "chat_template": template,
        "tokenizer_name": str(folder),
    }
