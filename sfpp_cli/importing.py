"""Imports of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """In the block Python's collector rests, as far as it was at work.

    Imports make hundreds of thousands of objects, all of which stay; to look through them again and again is
    a fifth of what PyTorch, diffusers and transformers take.
    """
    at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if at_work:
            gc.enable()
