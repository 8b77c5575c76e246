"""Splits a multimodal model: encoders for the edge, the LLM for the server.

Both halves hold the projectors, which are small, so that the cut can be chosen for every request.
The LLM's half keeps no state between requests: positions are explicit, and each answer has its own
cache. ``monolithic`` is the reference: the whole model with Hugging Face's ``forward`` and
``generate``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from mllm_sched.pipeline.architectures import Architecture, architecture_of
from mllm_sched.pipeline.requests import Item, Layout, Part, Request


class _Half:
    """The model without the other half's modules, and its projectors by modality."""

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
        return self.architecture.project(projector, features, part.layout)


class EncoderHalf(_Half):
    """The half for the edge: encoders, and processors that turn raw input into tensors.

    Only an LLM of the same identity takes its features.
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

        Raises ValueError for another modality.
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

        Raises ValueError for an item that the encoders cannot take.
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
        """Input tensors of the encoder, and the layout of its features. Raises as ``encode``."""
        if item.modality not in self.modalities:
            held = ", ".join(self.modalities)
            raise ValueError(f"no encoder for {item.modality} here; this half holds: {held}")
        processor = self._processors[item.modality]
        try:  # processors raise errors of many kinds, for audio of a few samples for example
            inputs, layout = self.architecture.prepare(processor, item)
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

        Raises ValueError if placeholders, brackets and parts differ.
        """
        architecture = self.architecture
        kinds = {architecture.placeholder(modality): modality for modality in self.projectors}
        left, ids, taken = list(parts), [], Counter[int]()
        for place, token in enumerate(prompt):
            if token not in kinds:
                ids.append(token)
                continue
            if not left or left[0][0] != kinds[token]:
                raise ValueError(f"prompt: token {place} stands for {kinds[token]}, parts do not")
            modality, layout = left.pop(0)
            brackets = architecture.brackets(modality) or ()
            if brackets and (not place or tuple(prompt[place - 1 : place + 2 : 2]) != brackets):
                raise ValueError(f"prompt: {modality} at {place} is not between {brackets}")
            taken.update(brackets)
            ids += [token] * architecture.tokens(modality, layout)
        if left:
            raise ValueError(f"prompt: no placeholder for {len(left)} of {len(parts)} parts")
        markers = {each for name in self.projectors for each in architecture.brackets(name) or ()}
        for marker in sorted(markers):  # one too many would shift all positions behind it
            if list(prompt).count(marker) != taken[marker]:
                raise ValueError(f"prompt: marker {marker} without an item beside it")
        return torch.tensor([ids])

    def generate(
        self,
        prompt: Sequence[int],
        parts: Sequence[Part],
        max_new_tokens: int,
        *,
        of_prompt: bool = False,
    ) -> Iterator[tuple[int, Tensor]]:
        """The greedy answer: each token with the logits it was chosen from, (1, vocabulary).

        With ``of_prompt`` the first comes with the logits of the whole prompt, (tokens,
        vocabulary), which may take gigabytes.
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
                places = (ids == self.architecture.placeholder(modality))[..., None]
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


def with_part(module: Any, path: str, part: nn.Module | None) -> Any:
    """A copy of a module that has ``part`` at ``path``; all else is shared."""
    name, _, rest = path.partition(".")
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    if name in copied._modules and not (rest and copied._modules[name] is None):
        copied._modules[name] = with_part(getattr(module, name), rest, part) if rest else part
    return copied


def split(model: Any, identity: str, source: str = "") -> tuple[EncoderHalf, LanguageHalf]:
    """Both halves of a Hugging Face model. They share its weights; the model itself stays whole.

    ``identity`` is that of its weights, ``source`` the folder or hub id with the input processors,
    which otherwise follow the configuration. Raises UnsupportedError for a model of another kind.
    """
    architecture = architecture_of(model.config)
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
    processors = {modality: _processor(architecture, modality, source) for modality in projectors}
    return (
        EncoderHalf(encoders, projectors, identity, processors),
        LanguageHalf(language, projectors, identity),
    )


def _processor(architecture: Architecture, modality: str, source: str) -> Any:
    """The checkpoint's own input processor if it has one, else one that follows the config."""
    from transformers.utils import cached_file

    processor = architecture.processor(modality)
    name = "preprocessor_config.json"
    if source and cached_file(source, name, _raise_exceptions_for_missing_entries=False):
        return type(processor).from_pretrained(source)
    return processor


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
        kinds = [ids == language.architecture.placeholder(kind) for kind in ("image", "video")]
        inputs["mm_token_type_ids"] = kinds[0] * 1 + kinds[1] * 2
    logits: Tensor = model(input_ids=ids, **inputs).logits
    length = {"max_new_tokens": request.max_new_tokens, "do_sample": False}
    answer = model.generate(input_ids=ids, **inputs, **length)
    return logits, tuple(answer[0, ids.shape[1] :].tolist())


def markers_of(half: EncoderHalf | LanguageHalf) -> dict[str, int]:
    """Tokens that stand for items, and those before and after them: ``image``, ``image.start``."""
    markers = {}
    architecture = half.architecture
    for modality in architecture.projectors:
        markers[modality] = architecture.placeholder(modality)
        if brackets := architecture.brackets(modality):
            markers[f"{modality}.start"], markers[f"{modality}.end"] = brackets
    begin = half.config.get_text_config().bos_token_id
    return markers if begin is None else {"begin": int(begin), **markers}
