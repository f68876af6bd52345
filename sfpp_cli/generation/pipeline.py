"""Stages that work at the same time, each in a thread of its own.

A stage is an iterator that reads from the one before it. PyTorch's operations and pipes to other processes
let go of Python's lock while they work: on a CPU stages share the cores, and a GPU that is given work by one
stage need not wait for what the others do on the CPU.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Semaphore, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

T = TypeVar("T")


class Pipeline:
    """Runs stages ahead of their readers; the block's end stops them all, wherever they are."""

    def __init__(self, *, threads: int | None = None, depth: int = 2) -> None:
        """`threads` are those that an operation may use in a stage; `depth` is how many items may wait."""
        self._threads = threads
        self._depth = depth
        self._stages: list[_Stage[Any]] = []

    def ahead(self, items: Iterable[T]) -> Iterator[T]:
        """The same items in order, made in a thread; after them comes the error that ended it, if any."""
        stage = _Stage(items, self._depth, self._threads)
        self._stages.append(stage)
        return stage

    def __enter__(self) -> Self:
        atexit.register(self._stop)  # for a stream that is left half read when the program ends
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        atexit.unregister(self._stop)

    def _stop(self) -> None:
        for stage in self._stages:
            stage.stop()
        for stage in self._stages:
            stage.join()


@dataclass(frozen=True)
class _End:
    """What comes after the last item."""

    error: BaseException | None = None


class _Stage(Iterator[T], Generic[T]):
    def __init__(self, items: Iterable[T], depth: int, threads: int | None) -> None:
        self._items = items
        self._threads = threads
        self._made: SimpleQueue[T | _End] = SimpleQueue()
        self._room = Semaphore(depth)
        self._stopped = False
        self._ended = False
        self._thread = Thread(target=self._work, daemon=True)  # one that a program's end does not wait for
        self._thread.start()

    def __next__(self) -> T:
        item = self._made.get()
        if isinstance(item, _End):
            self._made.put(item)
            raise item.error or StopIteration
        self._room.release()
        return item

    def stop(self) -> None:
        """Wake and interrupt whoever works or waits here: a pass of a large model may take minutes."""
        self._stopped = True  # Python drops an exception that it can only raise inside a destructor
        if self._thread.ident is not None and not self._ended:
            interruption = ctypes.py_object(SystemExit)  # which ends a thread without a word
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), interruption)
        self._room.release()
        self._made.put(_End())

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)  # OpenMP keeps a number, and a pool, for each thread
        end = _End()
        try:
            for item in self._items:
                self._room.acquire()
                if self._stopped:
                    break
                self._made.put(item)
        except BaseException as error:
            end = _End(error)
        self._ended = True
        self._made.put(end)
