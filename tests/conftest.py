"""What several test modules share: exported encoders."""

import fcntl

import pytest

from mllm_sched.pipeline.onnx import export_encoder


@pytest.fixture(scope="session")
def cache(tmp_path_factory, worker_id):
    """Where small encoders are exported to, once for all tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "encoders"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what one process exports, the others wait for
        for name in ("tiny-clip", "tiny-resnet"):
            export_encoder(name, "int8", folder=folder)
    return folder
