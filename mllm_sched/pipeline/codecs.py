"""How many bytes raw input takes once it is compressed: Pillow and PyAV do it for real."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mllm_sched.pipeline.requests import AUDIO_HZ


class CodecError(RuntimeError):
    """This build of PyAV lacks an encoder; the message names it."""


def jpeg(image: NDArray[np.uint8], quality: int = 75) -> bytes:
    """An image of shape (height, width, 3) as JPEG.

    Examples
    --------
    >>> len(jpeg(np.zeros((64, 64, 3), np.uint8))) < 1000
    True
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def h264(frames: NDArray[np.uint8], fps: float, bit_rate: int = 4_000_000) -> bytes:
    """Frames of shape (frames, height, width, 3) as H.264 in MP4.

    Parameters
    ----------
    fps
        Frames per second.
    bit_rate
        Mean bits per second that the encoder aims at.

    Raises
    ------
    CodecError
        If there is no ``libx264``.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = _stream(container, "libx264", Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", bit_rate
        stream.options = {"preset": "veryfast", "threads": "1"}  # the same bytes on any machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def opus(samples: NDArray[np.int16], bit_rate: int = 24_000) -> bytes:
    """Samples at 16 kHz as Opus in Ogg; CodecError if there is no ``libopus``."""
    return _sound(samples, "libopus", "ogg", "s16", bit_rate)


def flac(samples: NDArray[np.int16]) -> bytes:
    """Samples at 16 kHz as FLAC, without loss."""
    return _sound(samples, "flac", "flac", "s16", None)


def _sound(
    samples: NDArray[np.int16], codec: str, container_format: str, layout: str, bit_rate: int | None
) -> bytes:
    buffer, rate = io.BytesIO(), int(AUDIO_HZ)
    with av.open(buffer, "w", format=container_format) as container:
        stream = _stream(container, codec, rate)
        stream.layout, stream.format = "mono", layout
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None], format=layout, layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _stream(container: av.container.OutputContainer, codec: str, rate: int | Fraction):  # type: ignore[no-untyped-def]
    try:
        return container.add_stream(codec, rate=rate)
    except (ValueError, av.FFmpegError) as error:
        raise CodecError(f"this PyAV has no encoder {codec}: {error}") from error


def decoded(data: bytes) -> NDArray[np.generic]:
    """Frames (frames, height, width, 3) or samples (samples,) of what was compressed."""
    with av.open(io.BytesIO(data), "r") as container:
        if container.streams.video:
            return np.stack(
                [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            )
        to_16_khz = av.AudioResampler("s16", "mono", int(AUDIO_HZ))
        frames = [
            part.to_ndarray()[0]
            for frame in [*container.decode(audio=0), None]
            for part in to_16_khz.resample(frame)
        ]
        return np.concatenate(frames)
