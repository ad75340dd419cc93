"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number from 1.

    Raises:
      ArgumentTypeError: it is less. ValueError: it is none; argparse tells both to the caller.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
