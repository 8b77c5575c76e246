"""Text and token ids: prompts with a placeholder for each item, and answers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mllm_sched.pipeline.encoders import CHECKPOINT
from mllm_sched.pipeline.split import EncoderHalf, LanguageHalf


def markers_of(half: EncoderHalf | LanguageHalf) -> dict[str, int]:
    """Tokens that stand for items, and those before and after them: ``image``, ``image.start``."""
    markers = {}
    architecture, config = half.architecture, half.config
    for modality in architecture.projectors:
        markers[modality] = architecture.placeholder(config, modality)
        if brackets := architecture.brackets(config, modality):
            markers[f"{modality}.start"], markers[f"{modality}.end"] = brackets
    begin = config.get_text_config().bos_token_id
    return markers if begin is None else {"begin": int(begin), **markers}


def prompt_ids(
    markers: Mapping[str, int], modalities: Sequence[str], text: Sequence[int]
) -> tuple[int, ...]:
    """Token ids of the items in order, then the text; ValueError if the model takes no such item.

    ``text`` are token ids; those of small models are bytes: ``b"What is this?"``.

    Examples
    --------
    >>> prompt_ids({"begin": 257, "image": 260}, ["image"], b"hi")
    (257, 260, 104, 105)
    """
    ids = [markers["begin"]] if "begin" in markers else []
    for modality in modalities:
        if modality not in markers:
            taken = ", ".join(name for name in markers if name.isalpha() and name != "begin")
            raise ValueError(f"the model takes no {modality}; it takes {taken}")
        around = (f"{modality}.start", modality, f"{modality}.end")
        ids += [markers[name] for name in around if name in markers]
    return (*ids, *text)


def encode_text(
    source: str, markers: Mapping[str, int], modalities: Sequence[str], text: str
) -> tuple[int, ...]:
    """The prompt of a question in words.

    A checkpoint (``hf:``) brings a tokenizer; if that has a chat template, it says where items and
    text go. Otherwise the items come first, as in ``prompt_ids``.
    """
    tokenizer = _tokenizer(source)
    if tokenizer is None:
        return prompt_ids(markers, modalities, text.encode())
    if not tokenizer.chat_template:
        return prompt_ids(markers, modalities, tokenizer(text, add_special_tokens=False).input_ids)
    content = [*({"type": kind} for kind in modalities), {"type": "text", "text": text}]
    chat = [{"role": "user", "content": content}]
    made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return tuple(made["input_ids"])


class TextStream:
    """An answer as text, token by token.

    A character may be cut between tokens: all tokens are decoded each time, and an incomplete
    character is held back.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: list[int] = []
        self._said = 0

    def add(self, token: int) -> str:
        """New text with one more token; may be empty."""
        self._tokens.append(token)
        return self._new(decode_text(self._source, self._tokens).rstrip("\ufffd"))

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._new(decode_text(self._source, self._tokens))

    def _new(self, text: str) -> str:
        new, self._said = text[self._said :], max(self._said, len(text))
        return new


def decode_text(source: str, tokens: Sequence[int]) -> str:
    """Tokens as text; of small models, printable bytes, and all others by number."""
    if (tokenizer := _tokenizer(source)) is not None:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    return "".join(chr(token) if 32 <= token < 127 else f"<{token}>" for token in tokens)


@lru_cache(maxsize=2)
def _tokenizer(source: str) -> Any:
    if not source.startswith(CHECKPOINT):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.removeprefix(CHECKPOINT))
