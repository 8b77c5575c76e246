"""Files that are whole, and locks."""

from concurrent.futures import ThreadPoolExecutor

from mllm_sched.atomic_io import locked, write_whole


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    def write(number):
        for _ in range(50):
            write_whole(tmp_path / "file", bytes([number]) * 1000)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))  # raises what a thread raised
    content = (tmp_path / "file").read_bytes()
    assert len(content) == 1000 and len(set(content)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    first = locked(tmp_path / "new" / "lock")
    assert locked(tmp_path / "new" / "lock") is None
    first.close()
    with locked(tmp_path / "new" / "lock") as again:
        assert again
