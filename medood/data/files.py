"""Files and folders: read, and written completely or not at all."""

import csv
import functools
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

from config import UserError
from medood.data.names import name_of, plain
from medood.processes import is_main

TIMES = "times.csv"  # in the workspace: equal runs differ in it, and in the report that shows it
TICK = 0.05  # seconds; the clock of a disk may advance in steps of a few hundredths

UTF8 = {"encoding": "utf-8", "errors": "backslashreplace"}  # of text that may contain names

CHUNK = 16  # files that a thread takes at once: a hash takes less time than passing on one file

A = TypeVar("A")
T = TypeVar("T")


def in_threads(function: Callable[[A], T], items: Iterable[A], task: str = "") -> list[T]:
    """Return function(item) of each item, in order. task: what the progress bar says, if any."""
    items = list(items)
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]

    def call(chunk: list[A]) -> list[T]:
        return [function(item) for item in chunk]

    silent = None if task else True
    done = thread_map(call, chunks, desc=task, leave=False, disable=silent, unit_scale=CHUNK)
    return list(chain.from_iterable(done))


def pngs(folder: Path) -> list[Path]:
    """Return the .png files of `folder`, by name, without macOS's hidden ones; [] if no folder.

    Some programs write the ending in upper case.
    """
    found = (path for path in folder.glob("[!.]*") if path.suffix.lower() == ".png")
    return sorted(found, key=name_of)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a name to write a file to; the file takes the name `path` when it is on the disk.

    The next run overwrites what a killed run left under that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text`, completely or not at all."""
    with whole(path) as partial:
        partial.write_bytes(to_utf8(text))


def to_utf8(text: str) -> bytes:
    """Return text in UTF-8, even if it contains a file name that is not UTF-8 (see names.py)."""
    return text.encode(**UTF8)


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, completely or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def timed(workspace: Path, step: str) -> Iterator[None]:
    """Add the seconds that a block takes to <workspace>/times.csv."""
    started = time.perf_counter()
    yield
    if not is_main():
        return
    seconds = round(time.perf_counter() - started, 1)
    path = workspace / TIMES
    header = [] if path.exists() else [["finished", "step", "seconds"]]
    row = [datetime.now(UTC).isoformat(timespec="seconds"), step, seconds]
    with path.open("a", newline="", **UTF8) as file:
        csv.writer(file, lineterminator="\n").writerows([*header, row])


def read_json(path: Path) -> dict | None:
    """Return a JSON object; None if there is no such file or it contains something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
    return content if isinstance(content, dict) else None


def read_table(path: Path, known: Collection[str] = ()) -> list[dict[str, str]]:
    """Return the rows of a CSV as `read_rows` yields them, without their numbers."""
    return [row for _, row in read_rows(path, known)]


def read_rows(path: Path, known: Collection[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV with a header, and their numbers, from 2 on, as a spreadsheet counts.

    One by one: a long table need not fit into memory. Columns are separated by commas, semicolons
    or tabs. Columns and values are plain (names.py); empty rows are skipped, missing values are "".
    known: columns that may be in capitals.
    Raises UserError for other encodings than UTF-8, two columns of the same name, and a row that is
    too long.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = _separator_of(next(filter(str.strip, file), ""))
            file.seek(0)
            read = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            rows = ((number, [*map(plain, values)]) for number, values in enumerate(read, 1))
            lines = ((number, values) for number, values in rows if any(values))
            _, names = next(lines, (1, []))
            columns = [name.lower() if name.lower() in known else name for name in names]
            if twice := [name for name in columns if name and columns.count(name) > 1]:
                raise UserError(f"{path} has two columns named {twice[0]}: rename or remove one")
            for number, values in lines:
                if any(values[len(columns) :]):
                    raise UserError(
                        f"{path}: row {number} has more values than there are columns: correct it,"
                        " or put quotes around a value that contains the separator"
                    )
                padded = chain(values, repeat(""))
                yield number, dict(zip(columns, padded, strict=False))
    except (UnicodeDecodeError, csv.Error) as error:  # a quote that is left open is an error, too
        raise UserError(
            f'{path} is not a CSV in UTF-8 ({error}): save it as "CSV UTF-8" and close its quotes,'
            " or remove it if a step generated it"
        ) from None


def _separator_of(header: str) -> str:
    """Return what separates the columns that a line names."""

    def count(separator: str) -> int:
        return len(next(csv.reader([header], delimiter=separator), ()))

    return max(",;\t", key=count)


def csv_text(header: list[str], rows: Iterable[Iterable]) -> str:
    """Return a table as CSV."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    return lines.getvalue()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `folder` when the block ends.

    An error or a kill before that leaves `folder` as it was; a kill between the two renames at the
    end leaves none. What a killed run left next to it is removed.
    """
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "replaced"))
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        _remove(old)
        if folder.exists():
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    finally:
        _remove(partial)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link, but not the target of the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def digest(data: bytes | str) -> str:
    """Return the SHA-256 of `data` in hexadecimal; of text, of its UTF-8."""
    return hashlib.sha256(to_utf8(data) if isinstance(data, str) else data).hexdigest()


def fingerprint(paths: Iterable[Path]) -> str:
    """Return one hash of the folders, names and contents of files, in any order."""

    def line(path: Path) -> str:
        return f"{hash_of(path)} {plain(path.parent.name)}/{name_of(path)}"

    return digest("\n".join(sorted(in_threads(line, paths))))


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file's content; UserError if it is missing."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise missing(path) from None
    if time.time() - max(state.st_mtime, state.st_ctime) < TICK:
        return _hash_now(path)  # another change may not change its time
    return _hash_once(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


def _hash_now(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache  # the steps of main.py check the same files again and again
def _hash_once(path: Path, *state: int) -> str:
    return _hash_now(path)


def missing(path: Path) -> UserError:
    """Return the error to raise for a missing file."""
    return UserError(f"{path} is missing: restore it, or regenerate its folder")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the error of reading a damaged file of a step into a UserError with the cure."""
    try:
        yield
    except Exception as error:  # zip, numpy, safetensors, names and shapes each have their own kind
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): remove {path.parent} to have it"
            " regenerated"
        ) from None
