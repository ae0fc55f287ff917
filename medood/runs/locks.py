"""One run at a time: two in one folder would write over each other.

The locks are the operating system's, on open files in <folder>/.locks/: they end with the process
that holds them, however it ends.

Runs share a folder as long as all of them only read what the folder's data are made from; a run
that makes the data anew needs it alone. A part, such as one network, belongs to one run.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import portalocker
from portalocker import LockFlags

from config import UserError
from medood.data.files import tidy

LOCKS = ".locks"
PATIENCE = 3  # seconds: jobs that start together tidy up one after the other
ALONE, SHARED = (kind | LockFlags.NON_BLOCKING for kind in (LockFlags.EXCLUSIVE, LockFlags.SHARED))
_held: dict[Path, IO[str]] = {}  # folders that this process works in


@contextmanager
def in_use(folder: Path, parts: Iterable[str] = ()) -> Iterator[None]:
    """Hold `folder` together with others, and each of `parts` alone.

    Where nobody else holds it, what an earlier run that was killed has left is tidied up first.
    Raises UserError, naming the other run, where one holds what is asked for.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as stack:
        try:
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
            files = [stack.enter_context(_open(folder, name)) for name in ("folder", *parts)]
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written to ({error.strerror}): allow it, or name another one"
            ) from None
        stack.callback(_remove_if_empty, folder, absent)
        if _try(files[0], ALONE):
            tidy(folder)
        elif not _try(files[0], SHARED, patience=PATIENCE):
            raise _taken(folder, files[0])
        for file in files[1:]:
            if not _try(file, ALONE):
                raise _taken(folder, file)
        for file in files:
            _sign(file)
        _try(files[0], SHARED)
        _held[folder.resolve()] = files[0]
        stack.callback(_held.pop, folder.resolve())
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder that is `in_use` alone; of no effect in a call from other people's code."""
    file = _held.get(folder.resolve())
    if file is None:
        yield
        return
    if not _try(file, ALONE):
        raise _taken(folder, file)
    try:
        yield
    finally:
        _try(file, SHARED)


def _open(folder: Path, name: str) -> IO[str]:
    return (folder / LOCKS / name).open("a+", encoding="utf-8")


def _try(file: IO[str], flags: LockFlags, patience: float = 0) -> bool:
    """Lock a file and say whether that was possible, within some seconds."""
    try:
        portalocker.lock(file, flags)
    except portalocker.AlreadyLocked:
        if patience <= 0:
            return False
        time.sleep(0.1)
        return _try(file, flags, patience - 0.1)
    except portalocker.LockException as error:
        # some network drives know no locks: better without than not at all
        print(f"{file.name}: no lock is to be had here ({error}); start no second run", flush=True)
    return True


def _sign(file: IO[str]) -> None:
    """Write into a lock who holds it, for the other run's message."""
    file.truncate(0)
    file.write(f"{Path(sys.argv[0]).name}, process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def _taken(folder: Path, file: IO[str]) -> UserError:
    file.seek(0)
    what = "" if Path(file.name).name == "folder" else f" on {Path(file.name).name}"
    return UserError(
        f"another run ({file.read() or 'not named'}) works in {folder}{what}: wait until it is"
        " through, or name another folder"
    )


def _remove_if_empty(folder: Path, absent: list[Path]) -> None:
    """Remove folders that `in_use` made for its locks and in which nothing else came to lie."""
    if folder in absent and [path.name for path in folder.iterdir()] == [LOCKS]:
        shutil.rmtree(folder)
        with suppress(OSError):  # not empty
            for parent in absent[1:]:
                parent.rmdir()
