"""Prompts as token ids: one placeholder for each item, between the markers its model wants."""

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
    """Begin, all items in order, then the text.

    Parameters
    ----------
    markers
        Of ``markers_of``.
    modalities
        Of the items.
    text
        Token ids. A small model's tokens are bytes, so ``b"What is this?"`` will do.

    Raises
    ------
    ValueError
        If the model takes no such items.

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

    Parameters
    ----------
    source
        A model's name. A checkpoint (``hf:``) brings a tokenizer; if that has a chat template, it
        says where items and text go. Otherwise, and for small models, whose tokens are bytes, the
        items come first.
    markers, modalities
        As for ``prompt_ids``.
    text
        The question.
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


class Spoken:
    """An answer in words while its tokens come: what can be said of it so far, once.

    A word may be cut between tokens, and a character between bytes; so all tokens are decoded
    anew, and what may still change is held back.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: list[int] = []
        self._said = 0

    def add(self, token: int) -> str:
        """What is new with one more token; may be empty."""
        self._tokens.append(token)
        return self._new(decode_text(self._source, self._tokens).rstrip("\ufffd"))

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._new(decode_text(self._source, self._tokens))

    def _new(self, text: str) -> str:
        new, self._said = text[self._said :], max(self._said, len(text))
        return new


def decode_text(source: str, tokens: Sequence[int]) -> str:
    """An answer in words; of small models, their bytes, and every marker by number."""
    if (tokenizer := _tokenizer(source)) is not None:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    return "".join(chr(token) if 32 <= token < 127 else f"<{token}>" for token in tokens)


@lru_cache(maxsize=2)
def _tokenizer(source: str) -> Any:
    if not source.startswith(CHECKPOINT):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.removeprefix(CHECKPOINT))
