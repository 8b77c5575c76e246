"""The collector of a service leaves alone what was loaded."""

import gc
import sys

import pytest

from mllm_sched.harness.subprocess_worker import Child
from mllm_sched.process_setup import uncollected

COUNTS = """
import gc
from mllm_sched.harness.subprocess_worker import serve
loaded = []

def open_side():
    loaded.extend([] for _ in range(50_000))
    return lambda request, data: (gc.get_freeze_count(), b"")

serve(open_side)
"""


@pytest.fixture(params=[True, False])
def before(request):
    """Whether garbage is searched for when a test begins."""
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_a_block_that_fails_leaves_the_search_as_it_found_it(before):
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / gc.isenabled()
    assert gc.isenabled() is before


def test_what_a_child_loads_before_its_first_answer_is_not_searched_again():
    child = Child([sys.executable, "-c", COUNTS])
    assert child.ask({"do": "count"}, 60) > 50_000
    child.close()
