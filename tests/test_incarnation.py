"""A process's name, and what others learn from it."""

from __future__ import annotations

import subprocess

from coach.incarnation import has_ended, new_name


def test_a_process_that_runs_has_not_ended_and_a_killed_one_has() -> None:
    """Also while nobody has waited for it."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        name = new_name("w0", process.pid)
        assert name.startswith("w0-")
        assert not has_ended(name)
        assert not has_ended(new_name("w1"))
        process.kill()
        while process.poll() is None and not has_ended(name):
            pass
        assert has_ended(name)
    finally:
        process.kill()
        process.wait()
    assert has_ended(name)


def test_another_process_that_has_its_number_now_is_another_one() -> None:
    start, _, began = new_name("w0").rpartition(".")
    assert has_ended(f"{start}.{int(began) - 1}")
    assert not has_ended(f"{start}.{began}")


def test_of_processes_elsewhere_nothing_is_said() -> None:
    name, _, pid, began = new_name("w0").split(".")
    assert not has_ended(f"{name}.00000000.{pid}.{int(began) - 1}"), "another machine"
    for other in ("w0-1", "", "w0-1.2.3", f"{name}.x.y.z.u", "..."):
        assert not has_ended(other)


def test_no_two_names_are_the_same() -> None:
    assert new_name("w0") != new_name("w0")
