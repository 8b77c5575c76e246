"""What several test modules share: exported encoders."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory, worker_id):
    """Where small encoders are exported to, once for all tests; processes may ask at once."""
    folder = tmp_path_factory.getbasetemp()
    return (folder if worker_id == "master" else folder.parent) / "encoders"
