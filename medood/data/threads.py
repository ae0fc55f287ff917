"""One function on many files, in threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 1024  # items given to the threads at once: a pool takes 2 kB of memory for each

A = TypeVar("A")
T = TypeVar("T")


def in_threads(function: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """Yield function(item) of each item, in order; what it raises comes out here."""
    items = iter(items)
    with ThreadPoolExecutor() as pool:
        while part := list(islice(items, AHEAD)):
            yield from pool.map(function, part)
