"""Prompts as what a user says to an instruct model, in its tokenizer's chat template."""

from __future__ import annotations

from typing import Any

from metake.errors import InputError

_DATE = "26 Jul 2024"  # for templates that tell the date: equal prompts have equal tokens on every day
_MARK = "\u2063prompt\u2063"  # invisible separators: no template holds them


class ChatTokenizer:
    """A tokenizer whose prompts stand in its chat template; everything else is as the tokenizer has it.

    Attributes:
        opening, closing: what the template puts before and after a user's words, up to where the answer begins. The template's own
            special tokens are in them, so that none may be added.

    Raises:
        InputError: the tokenizer has no chat template, or one that changes the user's words.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("its tokenizer has no chat template", place="--chat", fix="leave out --chat, or use an instruct model")
        message = [{"role": "user", "content": _MARK}]
        said = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, date_string=_DATE)
        if said.count(_MARK) != 1:
            raise InputError("its chat template changes what the user says", place="--chat", fix="leave out --chat")
        self.opening, _, self.closing = said.partition(_MARK)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer(*args, **options)

    def __len__(self) -> int:
        return len(self._tokenizer)
