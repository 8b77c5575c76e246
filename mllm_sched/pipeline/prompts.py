"""Prompts as token ids: one placeholder for each item, between the markers its model wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
