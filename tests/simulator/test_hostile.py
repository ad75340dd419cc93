"""No text, however made, takes the simulator long: work is bounded and linear in the length."""

from __future__ import annotations

import time

import pytest

from coach.simulator.essay import measure, scores
from coach.simulator.feedback import feedback
from coach.simulator.grades import grade

from .texts import hostile_texts

CPU_S_MAX = 4.0
"""Some 0.5 s at most on a slow machine; whatever is quadratic takes 10 s and more."""


@pytest.mark.parametrize("text", hostile_texts().values(), ids=hostile_texts())
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    measure(text)
    scores(text)
    feedback([("user", f"<essay>\n{text}\n</essay>\nIt.")], "ideas (Ideas, 40 %)\n" * 50)
    grade(f"<essay>\n{text}\n</essay>", {"properties": {"content": {"type": "integer"}}})

    assert time.process_time() - begun < CPU_S_MAX


@pytest.mark.parametrize("text", hostile_texts().values(), ids=hostile_texts())
def test_no_instructions_take_long(text: str) -> None:
    begun = time.process_time()
    feedback([("user", "<essay>\nA text.\n</essay>\nPlease comment.")], text)
    feedback([("user", f"<essay>\nA text.\n</essay>\n{text}")])
    feedback([("user", "<essay>\nA text.\n</essay>"), ("user", f"<was>\n{text}\n</was>\n{text}")])

    assert time.process_time() - begun < CPU_S_MAX
