#!/usr/bin/env python3
"""Let a class of simulated students write against a running coach, and say what they saw.

    python scripts/simulate_writers.py --writers 60 --seconds 60

Each student takes one of the essays that come with the simulator, types it with pauses and slips,
asks for feedback, hands it in and waits for the grade. Exit code 0: no error and every submission
graded; 1: something went wrong, the table says what; 2: the run could not begin.
"""

from __future__ import annotations

import sys

import _environment


def main() -> int:
    """Enter the environment, then run."""
    _environment.enter()
    from coach.simulator.classroom import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
