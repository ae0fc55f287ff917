"""Locks: of two runs that would write the same product or network, the second is refused.

They are the operating system's, on files in <folder>/.locks/: they end with the process that has
them, however it ends. Some network drives do not support them: a run on such a drive says so.
"""

import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from config import UserError
from medood.processes import say_once

LOCKS = ".locks"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Lock the products or networks of these names in a folder.

    Raises UserError, naming the other run, if one holds any of the locks. If this drive does not
    support locks, it says so once, and locks nothing.
    """
    is_new = not folder.exists()
    holder = f"{Path(sys.argv[0]).name}, process {os.getpid()} on {socket.gethostname()}"
    try:
        with ExitStack() as stack:
            for name in names:
                path = folder / LOCKS / name
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(FileLock(path, timeout=0))
                    with suppress(PermissionError):  # Windows lets no one write to a locked file
                        path.write_text(holder, "utf-8")
                except Timeout:
                    raise UserError(
                        f"another run ({path.read_text('utf-8') or path}) is writing"
                        f" {folder / name}: wait until it ends, or name another folder"
                    ) from None
                except (NotImplementedError, OSError) as error:
                    if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                        raise
                    say_once(
                        f"{folder}: this disk has no file locks ({error}): start no second run"
                    )
            yield
    finally:
        if is_new and [path.name for path in folder.glob("*")] == [LOCKS]:
            shutil.rmtree(folder)  # the run wrote nothing
