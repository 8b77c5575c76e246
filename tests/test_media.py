"""Inputs to try a pipeline with, and codecs that really compress them."""

import itertools

import numpy as np
import pytest

from mllm_sched.pipeline import media


def psnr_db(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2))


@pytest.mark.parametrize("name", ["china", "flower"])
def test_photographs_have_the_shape_asked_for_and_are_the_same_each_time(name):
    image = media.photograph(name, 480, 720)
    assert image.shape == (480, 720, 3) and image.dtype == np.uint8
    assert np.array_equal(image, media.photograph(name, 480, 720)) and image.std() > 30


def test_a_video_moves_and_its_noise_differs_from_frame_to_frame():
    video = media.panned_video("china", 1.0, 10.0, 90, 160)
    assert video.shape == (10, 90, 160, 3)
    assert np.array_equal(video, media.panned_video("china", 1.0, 10.0, 90, 160))
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(video))


def test_sound_has_pauses_a_spectrum_like_speech_and_no_clipping():
    sound = media.speech_like(10.0)
    assert sound.shape == (160000,) and sound.dtype == np.int16
    loudness = np.sqrt((sound.reshape(-1, 800).astype(float) ** 2).mean(1))
    assert (loudness < 100).mean() > 0.02  # pauses
    assert np.abs(sound.astype(int)).max() < 32767
    power = np.abs(np.fft.rfft(sound)) ** 2
    assert power[: len(power) // 2].sum() > 5 * power[len(power) // 2 :].sum()  # below 4 kHz
    assert not np.array_equal(sound, media.speech_like(10.0, seed=1))


def test_jpeg_can_be_read_again_and_shrinks_with_its_quality():
    image = media.photograph("flower", 270, 480)
    fine, coarse = media.jpeg(image, 95), media.jpeg(image, 50)
    assert len(coarse) < len(fine) < image.nbytes
    assert psnr_db(media.decoded(fine)[0], image) > psnr_db(media.decoded(coarse)[0], image) > 25


def test_h264_is_a_video_of_all_frames_near_its_bit_rate():
    video = media.panned_video("china", 2.0, 25.0, 180, 320)
    data = media.h264(video, 25.0, 250_000)
    again = media.decoded(data)
    assert again.shape == video.shape and psnr_db(again, video) > 25
    assert 0.1e6 < 8 * len(data) / 2.0 < 0.4e6
    assert data == media.h264(video, 25.0, 250_000)


def test_opus_is_near_its_bit_rate_and_flac_loses_nothing():
    sound = media.speech_like(10.0)
    opus, flac = media.opus(sound), media.flac(sound)
    assert 0.5 * 24_000 < 8 * len(opus) / 10 < 1.5 * 24_000
    assert len(opus) < len(flac) < sound.nbytes
    assert np.array_equal(media.decoded(flac), sound)
    heard = media.decoded(opus)
    assert abs(len(heard) - len(sound)) < 2000
    assert len(media.opus(sound, 64_000)) > 2 * len(opus)
