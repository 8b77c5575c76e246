import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from mllm_sched.pipeline.encoders import (
    ENCODERS,
    build_encoder,
    encoder_spec,
    example_input,
)
from mllm_sched.tasks import MODALITIES

TINY = [name for name in ENCODERS if name.startswith("tiny-")]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def features(model, name_or_inputs):
    inputs = name_or_inputs
    if isinstance(inputs, str):
        inputs = torch.from_numpy(example_input(inputs, 2, np.random.default_rng(0)))
    with torch.inference_mode():
        return model(inputs)


def test_every_modality_has_an_encoder_and_a_tiny_one():
    for names in (TINY, set(ENCODERS) - set(TINY)):
        assert {encoder_spec(name).modality for name in names} == set(MODALITIES)


@pytest.mark.parametrize("name", TINY)
def test_features_are_tokens_by_width_and_differ_between_inputs_and_seeds(name):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (features(build_encoder(name, seed), name) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)  # the global random state is left alone
    assert first.ndim == 3 and first.shape[0] == 2 and torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first, other)


@pytest.mark.parametrize("name", TINY)
def test_example_input_has_the_shape_and_range_of_its_modality(name):
    inputs = example_input(name, 1, np.random.default_rng(0))
    assert inputs.dtype == np.float32
    assert inputs.shape == (1, *encoder_spec(name).input_shape)
    least, most = (-1, 1) if encoder_spec(name).modality == "audio" else (-2, 2.3)
    assert least <= inputs.min() and inputs.max() <= most


def test_an_unknown_encoder_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'clip-vit-l15'.*clip-vit-l14-336.*resnet-50.*hf:"):
        encoder_spec("clip-vit-l15")


def test_clip_loads_its_image_half_from_a_checkpoint_of_both(tmp_path):
    config = CLIPConfig(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        text_config={**TOWER, "vocab_size": 50000},
    )
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    name = f"hf:{tmp_path}"
    inputs = torch.from_numpy(example_input(name, 2, np.random.default_rng(0)))
    with torch.inference_mode():
        expected = whole.vision_model(inputs).last_hidden_state
    assert torch.equal(features(build_encoder(name), inputs), expected)
    assert encoder_spec(name).modality == "image"
    assert encoder_spec(name).input_shape == (3, 32, 32)


def test_whisper_loads_its_encoder_and_drops_its_decoder(tmp_path):
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        max_source_positions=50,
    )
    whole = WhisperForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    model = build_encoder(f"hf:{tmp_path}")
    inputs = torch.from_numpy(example_input(f"hf:{tmp_path}", 1, np.random.default_rng(0)))
    with torch.inference_mode():
        expected = whole.model.encoder(inputs).last_hidden_state
    assert torch.equal(features(model, inputs), expected)
    assert not [name for name, _ in model.named_parameters() if "decoder" in name]


@pytest.mark.parametrize("name", TINY)
def test_what_is_saved_loads_back_with_equal_features(name, tmp_path):
    model = build_encoder(name, seed=7)
    model.model.save_pretrained(tmp_path)
    loaded = build_encoder(f"hf:{tmp_path}")
    assert torch.equal(features(model, name), features(loaded, name))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    build_encoder("tiny-resnet").model.save_pretrained(tmp_path)
    deeper = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])
    deeper.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights, first 'encoder"):
        build_encoder(f"hf:{tmp_path}")


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a bert; expected one of clip, whisper"):
        encoder_spec(f"hf:{tmp_path}")
