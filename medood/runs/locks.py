"""Locks on a folder: two runs that make the same data would write over each other.

Runs share a folder as long as all of them only read what the folder's data are made from; a run
that makes the data anew needs it alone. A part, such as one network, belongs to one run.

The locks are the operating system's, on open files in <folder>/.locks/: they end with the process
that holds them, however it ends. Some network drives have none: a run on such a drive says so, and
tidies nothing up, as other runs may be at work there.
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

LOCKS, WHOLE = ".locks", "folder"  # where the locks lie, and which of them is the folder's own
PATIENCE = 3  # seconds: runs that start together tidy the folder up one after the other
ALONE, SHARED = (kind | LockFlags.NON_BLOCKING for kind in (LockFlags.EXCLUSIVE, LockFlags.SHARED))
_held: dict[Path, IO[str]] = {}  # the lock on each folder that this process works in


@contextmanager
def in_use(folder: Path, parts: Iterable[str] = ()) -> Iterator[None]:
    """Hold `folder` together with other runs, and each of `parts` alone.

    If no other run holds the folder, what a killed run left in it is tidied up first. Raises
    UserError, naming the other run, if one holds what is asked for. Without locks on this drive it
    says so once, and holds nothing.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as stack:
        try:
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
            whole, *files = [
                stack.enter_context((folder / LOCKS / name).open("a+", encoding="utf-8"))
                for name in (WHOLE, *parts)
            ]
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be written to ({error.strerror}): allow it, or"
                f" name another folder than {folder}"
            ) from None
        stack.callback(_remove_if_empty, folder, absent)
        try:
            _lock_all(folder, whole, files)
            _held[folder.resolve()] = whole
            stack.callback(_held.pop, folder.resolve())
        except portalocker.LockException as error:  # a run without locks is better than none
            print(f"{folder}: no lock is to be had here ({error}); start no second run")
        yield


def _lock_all(folder: Path, whole: IO[str], files: list[IO[str]]) -> None:
    """Lock a folder with other runs, and its parts alone; tidy up if no other run is there.

    Raises UserError, naming the other run, if one holds what is asked for.
    """
    mine = list(files)
    try:
        _lock(whole, ALONE)
        tidy(folder)
        mine.append(whole)
    except UserError:  # other runs are at work: the lock keeps the name of the first
        _lock(whole, SHARED)
    for file in files:
        _lock(file, ALONE)
    for file in mine:
        file.truncate(0)
        file.write(_this_run())
        file.flush()
    _lock(whole, SHARED)


def holder_of(path: Path) -> Path | None:
    """Return the nearest folder above a path that runs hold while they work in it, or None."""
    return next((parent for parent in path.resolve().parents if (parent / LOCKS).is_dir()), None)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder that is `in_use` alone; UserError if other runs hold it too.

    Does nothing for a folder that is not `in_use`, as functions may be called without a run, nor
    where there are no locks.
    """
    whole = _held.get(folder.resolve())
    if whole is None:
        yield
        return
    _lock(whole, ALONE)
    try:
        yield
    finally:
        _lock(whole, SHARED)


def _lock(file: IO[str], kind: LockFlags) -> None:
    """Lock an open file, or change its lock; UserError, naming the other run, if one holds it.

    Raises LockException where the drive has no locks.
    """
    end = time.monotonic() + (PATIENCE if kind == SHARED else 0)
    while True:
        try:
            portalocker.lock(file, kind)
        except portalocker.AlreadyLocked:
            if time.monotonic() < end:
                time.sleep(0.1)
                continue
            raise _taken(file) from None
        return


def _this_run() -> str:
    """Return what a lock says of the run that holds it."""
    return f"{Path(sys.argv[0]).name}, process {os.getpid()} on {socket.gethostname()}"


def _taken(file: IO[str]) -> UserError:
    file.seek(0)
    path, holder = Path(file.name), file.read()
    if holder == _this_run():  # the last of the runs that share the folder: it is another one
        holder = ""
    part = "" if path.name == WHOLE else f" on {path.name}"
    return UserError(
        f"another run ({holder or 'not named'}) works in {path.parents[1]}{part}: wait until it"
        " ends, or name another folder"
    )


def _remove_if_empty(folder: Path, absent: list[Path]) -> None:
    """Remove the folders that `in_use` made for its locks, if they hold nothing else."""
    if folder in absent and [path.name for path in folder.iterdir()] == [LOCKS]:
        shutil.rmtree(folder)
        with suppress(OSError):  # not empty
            for parent in absent[1:]:
                parent.rmdir()
