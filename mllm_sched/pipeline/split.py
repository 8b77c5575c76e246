"""Splits a multimodal model: encoders for the edge, the LLM for the server.

Both halves hold the projectors, which are small, so that the cut can be chosen for every request.
The LLM's half keeps no state between requests: positions are explicit, and each answer has its own
cache of keys and values. ``monolithic`` is the reference: the same request, answered by the whole
model with Hugging Face's own ``forward`` and ``generate``.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from mllm_sched.pipeline.architectures import Architecture, architecture_of
from mllm_sched.pipeline.requests import Item, Layout, Part, Request


class _Half:
    """What both halves share: the model without the other's modules, and its projectors."""

    def __init__(self, model: Any, projectors: Mapping[str, nn.Module], identity: str) -> None:
        self.model = model
        self.config = model.config
        self.architecture: Architecture = architecture_of(model.config)
        self.projectors = dict(projectors)
        self.identity = identity

    @property
    def memory_bytes(self) -> int:
        """Of all weights of this half."""
        modules = [self.model, *self.projectors.values()]
        weights = {id(weight): weight for module in modules for weight in module.parameters()}
        return sum(weight.numel() * weight.element_size() for weight in weights.values())

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @torch.inference_mode()
    def project(self, part: Part) -> Tensor:
        """Features of a part as the LLM takes them, whatever its cut."""
        features = part.features.to(self.dtype)
        if part.cut == "projector":
            return features
        projector = self.projectors[part.modality]
        return self.architecture.project(projector, self.config, features, part.layout)


class EncoderHalf(_Half):
    """The half for the edge.

    Its model has no LLM, and identities in place of projectors, which are held by modality beside
    the processors that turn raw input into tensors. Only an LLM of the same identity takes its
    features.
    """

    def __init__(
        self,
        model: Any,
        projectors: Mapping[str, nn.Module],
        identity: str,
        processors: Mapping[str, Any],
    ) -> None:
        super().__init__(model, projectors, identity)
        self.modalities = tuple(projectors)
        self._processors = dict(processors)

    def only(self, modalities: Sequence[str]) -> EncoderHalf:
        """This half with the encoders of some modalities, all if none is named.

        Raises ValueError for a modality without an encoder.
        """
        if missing := sorted(set(modalities) - set(self.modalities)):
            held = ", ".join(self.modalities)
            raise ValueError(f"no encoder for {', '.join(missing)}; this model has: {held}")
        wanted = [name for name in self.modalities if name in modalities or not modalities]
        model, encoders = self.model, self.architecture.encoders
        for path in set(encoders.values()) - {encoders[name] for name in wanted}:
            model = with_part(model, path, None)
        projectors = {name: self.projectors[name] for name in wanted}
        return EncoderHalf(model, projectors, self.identity, self._processors)

    @torch.inference_mode()
    def encode(self, item: Item, cut: str = "projector") -> Part:
        """Features of one item, cut after the ``encoder`` or after the ``projector``.

        Raises ValueError for an item of another modality, or one that the encoder cannot take.
        """
        return self.encode_prepared(item.modality, *self.prepare(item), cut)

    @torch.inference_mode()
    def encode_prepared(
        self, modality: str, inputs: dict[str, Tensor], layout: Layout, cut: str = "projector"
    ) -> Part:
        """As ``encode``, from the result of ``prepare``."""
        if cut not in ("encoder", "projector"):
            raise ValueError(f"cut={cut!r}: an encoder's features are cut at encoder or projector")
        features = self.architecture.encode(self.model, modality, inputs)
        part = Part(modality, "encoder", features, layout)
        if cut == "encoder":
            return part
        return Part(modality, cut, self.project(part), layout)

    def prepare(self, item: Item) -> tuple[dict[str, Tensor], Layout]:
        """Input tensors of the encoder, and the layout of its features; ValueError if invalid."""
        if item.modality not in self.modalities:
            held = ", ".join(self.modalities)
            raise ValueError(f"no encoder for {item.modality} here; this half holds: {held}")
        processor = self._processors[item.modality]
        try:  # processors raise errors of many kinds, for audio of a few samples for example
            inputs, layout = self.architecture.prepare(self.config, processor, item)
        except (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
            shape = " x ".join(map(str, item.data.shape))
            why = str(error).partition("\n")[0][:200]
            raise ValueError(f"{item.modality} of {shape} cannot be prepared: {why}") from error
        if layout.grid is not None:
            inputs["grid"] = torch.tensor([layout.grid])
        return inputs, layout


class LanguageHalf(_Half):
    """The half for the server: text and features in, tokens out."""

    def ids(self, prompt: Sequence[int], parts: Sequence[tuple[str, Layout]]) -> Tensor:
        """The prompt with each placeholder repeated for every token of its item: (1, tokens).

        Raises ValueError if placeholders and parts differ, or stand outside their brackets.
        """
        kinds = {self.placeholder(modality): modality for modality in self.projectors}
        left, ids = list(parts), []
        for place, token in enumerate(prompt):
            if token not in kinds:
                ids.append(token)
                continue
            if not left or left[0][0] != kinds[token]:
                raise ValueError(f"prompt: token {place} stands for {kinds[token]}, parts do not")
            modality, layout = left.pop(0)
            self._check_brackets(prompt, place, modality)
            ids += [token] * self.architecture.tokens(self.config, modality, layout)
        if left:
            raise ValueError(f"prompt: no placeholder for {len(left)} of {len(parts)} parts")
        self._check_markers(prompt, parts)
        return torch.tensor([ids])

    def placeholder(self, modality: str) -> int:
        """The token that stands for an item."""
        return self.architecture.placeholder(self.config, modality)

    def generate(
        self,
        prompt: Sequence[int],
        parts: Sequence[Part],
        max_new_tokens: int,
        *,
        of_prompt: bool = False,
    ) -> Iterator[tuple[int, Tensor]]:
        """The greedy answer: each token with the logits it was chosen from, (1, vocabulary).

        With ``of_prompt`` the first token comes with the logits of the whole prompt, (tokens,
        vocabulary), which may take gigabytes. Ends after an end-of-sequence token.
        """
        from transformers import DynamicCache

        end = self.config.get_text_config().eos_token_id
        ends = set(end) if isinstance(end, list) else {end}
        with torch.inference_mode():
            embedded, positions = self._embedded(prompt, parts)
        cache = DynamicCache(config=self.config.get_text_config())
        for _ in range(max_new_tokens):
            with torch.inference_mode():  # not held while the caller has the token
                logits = self._forward(embedded, positions, cache, last=not of_prompt)
                token = int(logits[-1].argmax())
                embedded = self._embed(torch.tensor([[token]]))
                positions = positions.amax().expand(*positions.shape[:-1], 1) + 1
            yield token, logits
            if token in ends:
                return

    def _embedded(self, prompt: Sequence[int], parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        layouts = [(part.modality, part.layout) for part in parts]
        ids = self.ids(prompt, layouts)
        embedded = self._embed(ids)
        for modality in self.projectors:
            features = [self.project(part) for part in parts if part.modality == modality]
            if features:
                places = (ids == self.placeholder(modality))[..., None]
                embedded = embedded.masked_scatter(places, torch.cat(features))
        return embedded, self.architecture.positions(self.model, ids, layouts)

    def _embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.model.language_model.get_input_embeddings()(ids)
        return embedded

    def _forward(self, embedded: Tensor, positions: Tensor, cache: Any, *, last: bool) -> Tensor:
        hidden = self.model.model.language_model(
            inputs_embeds=embedded,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[:, -1:] if last else hidden)
        return logits[0]

    def _check_brackets(self, prompt: Sequence[int], place: int, modality: str) -> None:
        brackets = self.architecture.brackets(self.config, modality)
        around = (
            prompt[place - 1] if place > 0 else None,
            prompt[place + 1] if place + 1 < len(prompt) else None,
        )
        if brackets and around != brackets:
            raise ValueError(f"prompt: {modality} at {place} is not between {brackets}")

    def _check_markers(self, prompt: Sequence[int], parts: Sequence[tuple[str, Layout]]) -> None:
        """A start or end marker without its item would shift all positions behind it."""
        pairs = {self.architecture.brackets(self.config, modality) for modality in self.projectors}
        for pair in pairs - {None}:
            items = sum(
                self.architecture.brackets(self.config, modality) == pair for modality, _ in parts
            )
            for marker in pair or ():
                if list(prompt).count(marker) != items:
                    raise ValueError(f"prompt: marker {marker} without an item beside it")


def with_part(module: Any, path: str, part: nn.Module | None) -> Any:
    """A copy of a module that has ``part`` at ``path``; all else is shared."""
    name, _, rest = path.partition(".")
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    if name in copied._modules and not (rest and copied._modules[name] is None):
        copied._modules[name] = with_part(getattr(module, name), rest, part) if rest else part
    return copied


def split(model: Any, identity: str = "", source: str = "") -> tuple[EncoderHalf, LanguageHalf]:
    """Both halves of a Hugging Face model. They share its weights; the model itself stays whole.

    ``identity`` of its weights is their digest by default. ``source`` is the folder or hub id with
    the input processors; by default they follow the configuration. Raises UnsupportedError for a
    model of another kind.
    """
    architecture = architecture_of(model.config)
    identity = identity or _weights_identity(model)
    projectors = {
        modality: attrgetter(path)(model) for modality, path in architecture.projectors.items()
    }
    encoders = language = model
    for path in architecture.language:
        encoders = with_part(encoders, path, None)
    for path in set(architecture.projectors.values()):
        encoders = with_part(encoders, path, nn.Identity())
    for path in set(architecture.encoders.values()) | set(architecture.projectors.values()):
        language = with_part(language, path, None)
    processors = {
        modality: _processor(architecture, model.config, modality, source)
        for modality in projectors
    }
    return (
        EncoderHalf(encoders, projectors, identity, processors),
        LanguageHalf(language, projectors, identity),
    )


def _processor(architecture: Architecture, config: Any, modality: str, source: str) -> Any:
    """The checkpoint's own input processor if it has one, else one that follows the config."""
    from transformers.utils import cached_file

    processor = architecture.processor(config, modality)
    name = "preprocessor_config.json"
    if source and cached_file(source, name, _raise_exceptions_for_missing_entries=False):
        return type(processor).from_pretrained(source)
    return processor


def _weights_identity(model: Any) -> str:
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def monolithic(model: Any, request: Request) -> tuple[Tensor, tuple[int, ...]]:
    """Logits of the prompt, (1, tokens, vocabulary), and greedy tokens of the whole model."""
    encoders, language = split(model, "whole")
    prepared = [(item.modality, *encoders.prepare(item)) for item in request.items]
    ids = language.ids(request.prompt, [(modality, layout) for modality, _, layout in prepared])
    inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
    for modality, tensors, layout in prepared:
        inputs |= {key: value for key, value in tensors.items() if key != "grid"}
        if layout.grid:
            inputs[f"{modality}_grid_thw"] = torch.tensor([layout.grid])
        if layout.seconds_per_grid:
            omni = "omni" in model.config.model_type
            name = "video_second_per_grid" if omni else "second_per_grid_ts"
            inputs[name] = torch.tensor([layout.seconds_per_grid])
    if model.config.model_type == "qwen2_5_vl":
        kinds = [ids == language.placeholder(modality) for modality in ("image", "video")]
        inputs["mm_token_type_ids"] = kinds[0] * 1 + kinds[1] * 2
    logits: Tensor = model(input_ids=ids, **inputs).logits
    length = {"max_new_tokens": request.max_new_tokens, "do_sample": False}
    answer = model.generate(input_ids=ids, **inputs, **length)
    return logits, tuple(answer[0, ids.shape[1] :].tolist())
