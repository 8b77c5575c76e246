from itertools import islice

import numpy as np
import pytest

from mllm_sched.tasks import Task, periodic_stream, poisson_stream

IMAGE = Task("image", "clip-vit-l14-336")
AUDIO = Task("audio", "whisper-small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "smell"}, "modality='smell'.*image, audio, video"),
        ({"encoder": ""}, "encoder"),
        ({"size": 0}, "size=0"),
        ({"deadline_s": -1.0}, "deadline_s=-1.0"),
        ({"arrival_s": float("nan")}, "arrival_s=nan"),
        ({"background_load": 1.0}, r"background_load=1.0: expected within \[0, 1\)"),
    ],
)
def test_a_bad_task_names_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        Task(**{"modality": "image", "encoder": "clip-vit-l14-336", **change})


def test_poisson_arrivals_keep_their_rate_and_mix():
    stream = poisson_stream([IMAGE, AUDIO], 4.0, np.random.default_rng(0), weights=[3, 1])
    tasks = list(islice(stream, 4000))
    arrivals = np.array([task.arrival_s for task in tasks])
    gaps = np.diff(arrivals)
    assert (gaps > 0).all()
    # Exponential gaps: mean 1/4 s, and a standard deviation equal to the mean.
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.25, rel=0.08)
    assert np.mean([task.modality == "image" for task in tasks]) == pytest.approx(0.75, abs=0.03)


def test_the_same_seed_gives_the_same_stream():
    streams = [poisson_stream([IMAGE, AUDIO], 1.0, np.random.default_rng(7)) for _ in range(2)]
    assert list(islice(streams[0], 50)) == list(islice(streams[1], 50))


def test_a_periodic_stream_ticks():
    assert [t.arrival_s for t in islice(periodic_stream(IMAGE, 0.1), 3)] == [0.0, 0.1, 0.2]


def test_bad_streams_are_refused_at_once():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one kind"):
        poisson_stream([], 1.0, rng)
    with pytest.raises(ValueError, match="rate_hz=0"):
        poisson_stream([IMAGE], 0, rng)
    with pytest.raises(ValueError, match="weights"):
        poisson_stream([IMAGE, AUDIO], 1.0, rng, weights=[1, -1])
    with pytest.raises(ValueError, match="period_s=0"):
        periodic_stream(IMAGE, 0)
