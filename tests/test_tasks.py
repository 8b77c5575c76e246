import pytest

from mllm_sched.tasks import Task


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
