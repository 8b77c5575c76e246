"""What a server takes, and what the features of its model must look like."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_sched.pipeline.halves import EncoderHalf, LanguageHalf
from mllm_sched.pipeline.requests import AUDIO_HZ, CUTS, Item, Layout
from mllm_sched.pipeline.wire_header import Header, MismatchError, PartHeader, WireError

# Of raw items: an encoder enlarges what is small or narrow, so few bytes could fill the memory.
MAX_SIDE, MAX_ASPECT, MAX_FRAMES, MAX_AUDIO_S = 8192, 20, 256, 1200


class Rules:
    """What a server takes.

    Parameters
    ----------
    half
        Knows the model's identity, its modalities and the shape of their features: either half.
    cuts
        That are served.
    vocabulary
        Token ids lie below it.
    max_tokens
        Of a prompt with all its features, and its answer.
    max_new_tokens
        Of an answer.
    max_items
        Of one request.
    max_logits_bytes
        Of the logits of a prompt, if they are wanted.
    """

    def __init__(
        self,
        half: EncoderHalf | LanguageHalf,
        cuts: Sequence[str] = CUTS,
        *,
        max_tokens: int = 32768,
        max_new_tokens: int = 1024,
        max_items: int = 64,
        max_logits_bytes: int = 64 << 20,
    ) -> None:
        self.half = half
        self.dtype = half.dtype
        self.cuts = tuple(cuts)
        text = half.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.max_tokens = min(max_tokens, int(text.max_position_embeddings))
        self.max_new_tokens = max_new_tokens
        self.max_items = max_items
        self.max_logits_bytes = max_logits_bytes

    def check(self, header: Header) -> None:
        """Refuse what is not for this server, or asks for too much."""
        if header.model != self.half.identity:
            theirs, ours = header.model[:12], self.half.identity[:12]
            raise MismatchError(f"made for model {theirs}, this server holds {ours}")
        if header.cut not in self.cuts:
            raise MismatchError(f"cut at {header.cut}, this server takes {', '.join(self.cuts)}")
        if header.max_new_tokens > self.max_new_tokens:
            raise WireError(
                f"max_new_tokens={header.max_new_tokens}: at most {self.max_new_tokens} here"
            )
        if len(header.parts) > self.max_items:
            raise WireError(f"{len(header.parts)} items: at most {self.max_items} here")
        for part in header.parts:
            if part.modality not in self.half.projectors:
                held = ", ".join(self.half.projectors)
                raise MismatchError(f"{part.modality}: this model takes {held}")

    def shape(self, part: PartHeader, cut: str) -> tuple[int, int]:
        """Rows and width that the features of a part must have."""
        architecture, config = self.half.architecture, self.half.config
        try:
            if cut == "encoder":
                rows, width = architecture.encoded_shape(config, part.modality, part.layout)
            else:
                rows = architecture.tokens(config, part.modality, part.layout)
                width = int(config.get_text_config().hidden_size)
        except ValueError as error:
            raise WireError(f"{part.modality}: {error}") from error
        if architecture.tokens(config, part.modality, part.layout) > self.max_tokens:
            raise WireError(f"{part.modality}: {rows} rows: more than {self.max_tokens} tokens")
        return rows, width

    def check_item(self, item: Item) -> None:
        """Refuse raw input that would take far more memory than its bytes."""
        if item.modality == "audio":
            if len(item.data) > MAX_AUDIO_S * AUDIO_HZ:
                raise WireError(f"audio of {len(item.data)} samples: at most {MAX_AUDIO_S} s")
            return
        height, width = item.data.shape[-3:-1]
        if max(height, width) > min(MAX_SIDE, MAX_ASPECT * min(height, width)):
            raise WireError(
                f"{item.modality} of {height} x {width}: at most {MAX_SIDE} along a side, and "
                f"{MAX_ASPECT} times the other side"
            )
        if item.modality == "video" and len(item.data) > MAX_FRAMES:
            raise WireError(f"video of {len(item.data)} frames: at most {MAX_FRAMES}")

    def check_length(
        self,
        prompt: Sequence[int],
        layouts: Sequence[tuple[str, Layout]],
        max_new_tokens: int,
        *,
        logits: bool = False,
    ) -> None:
        """Refuse a request that is longer with its features and answer than the model reads."""
        tokens = sum(
            self.half.architecture.tokens(self.half.config, modality, layout)
            for modality, layout in layouts
        )
        if (total := len(prompt) + tokens + max_new_tokens) > self.max_tokens:
            raise WireError(f"{total} tokens with the answer: at most {self.max_tokens} here")
        wanted = 4 * self.vocabulary * (len(prompt) + tokens) if logits else 0
        if wanted > self.max_logits_bytes:
            most = self.max_logits_bytes
            raise WireError(f"logits of the prompt are {wanted} bytes: at most {most} here")
