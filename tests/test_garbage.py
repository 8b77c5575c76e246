"""When garbage is searched for, and through what."""

import gc
import sys

import pytest

from mllm_sched.garbage import uncollected
from mllm_sched.harness.child import Child

COUNTS = """
import gc
from mllm_sched.harness.child import serve
made = []

def answer(request, data):
    made.extend([] for _ in range(50_000))
    return gc.get_freeze_count(), b""

serve(lambda: answer)
"""


@pytest.mark.parametrize("before", [True, False])
def test_a_block_leaves_the_search_as_it_found_it(before):
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), uncollected():
            1 / gc.isenabled()
        assert gc.isenabled() is before
    finally:
        gc.enable()


def test_what_the_first_request_loads_is_not_searched_afterwards():
    child = Child([sys.executable, "-c", COUNTS])
    first, second, third = (child.ask({"do": "count"}, 30) for _ in range(3))
    assert first == 0 and second > 50_000 and third == second
    child.close()
