"""What a folder was made from: how a step knows that its work is done, out of date, or the user's.

A folder that a step wrote holds made_from.json: the settings and the fingerprint of the inputs
behind it, how many images it has, and which input files were bad and left out. A folder without
one was put there by the user and is never overwritten.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from config import Config, UserError
from medood.data.files import digest, pngs, read_json, whole_folder, write_json
from medood.data.images import missing
from medood.data.threads import in_threads

RECORD = "made_from.json"
LISTED = 20  # of the bad files, in a message

T = TypeVar("T")
BadFiles = dict[str, str]  # what is wrong, by the name of the file


def fingerprint(paths: Iterable[Path]) -> str:
    """Return one hash of the folders, names and contents of files, in any order."""

    def line(path: Path) -> str:
        return f"{_hash_now(path)} {path.parent.name}/{path.name}"

    return digest("\n".join(sorted(in_threads(line, paths))).encode())


def _hash_now(path: Path) -> str:
    try:
        state = path.stat()
    except FileNotFoundError:
        raise missing(path) from None
    return hash_once(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache  # the steps of main.py look at the same files again and again
def hash_once(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def fresh_folder(folder: Path, record: dict, bad: BadFiles | None = None) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the name `folder`, with `record`, once it is full.

    bad: the input files that are left out; may be filled on the way. An error or a kill leaves
    what stood at `folder` before as it was.
    """
    if pngs(folder) and not (folder / RECORD).exists():
        raise UserError(f"{folder} was put there by you: remove it to have it made anew")
    with whole_folder(folder) as partial:
        yield partial
        outputs = {"files": len(pngs(partial)), "outputs": contents(partial)}
        content = {**record, **outputs, "bad_files": bad or {}}
        write_json(partial / RECORD, content)


def is_kept(folder: Path, record: dict) -> bool:
    """Say, also to the user, whether `folder` stays: made from `record`, or put there by the user.

    A folder without a record was not written by these scripts, so they never overwrite it.
    """
    if not pngs(folder):
        return False
    if read_json(folder / RECORD) is None:
        print(f"{folder}: kept, it was put there by you (remove it to have it made)")
        return True
    why = out_of_date(folder, record)
    if not why and not is_unchanged(folder):
        raise UserError(
            f"{folder} was changed, or damaged, since it was made: remove it to have it made anew,"
            f" or remove its {RECORD} to keep it as your own"
        )
    if not why and bad_files(folder):
        why = "files behind it could not be used"  # it may be the settings that were mended
    said = f"made again: {why}" if why else "kept, made from the same inputs and settings"
    print(f"{folder}: {said}")
    return not why


def is_unchanged(folder: Path) -> bool:
    """Say whether the images in a folder of ours are, to the byte, those that were made."""
    return (read_json(folder / RECORD) or {}).get("outputs") == contents(folder)


def contents(folder: Path) -> str:
    """Return one hash of the names and contents of the images in a folder."""
    paths = pngs(folder)
    hashes = in_threads(_hash_now, paths)
    lines = [f"{content} {path.name}" for content, path in zip(hashes, paths, strict=True)]
    return digest("\n".join(lines).encode())


def out_of_date(folder: Path, record: dict) -> str:
    """Return in words why a folder is not what `record` would make now, or "" if it is."""
    found = dict(read_json(folder / RECORD) or {})
    for name in ("bad_files", "outputs"):
        found.pop(name, None)
    return changes(found, {**record, "files": len(pngs(folder))})


def changes(before: dict, now: dict) -> str:
    """Return what differs between two records, in words; "" if nothing does."""
    said = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            said.append(changes(old, new))
        elif name == "files":
            said.append(f"of its {old} files {new} are there")
        elif name in ("inputs", "masks"):
            said.append("what it is made from changed")
        elif old is None or new is None or max(len(str(old)), len(str(new))) > 40:
            said.append(f"{name} changed")
        else:
            said.append(f"{name} was {old}, is {new}")
    return ", ".join(dict.fromkeys(said))


def bad_files(folder: Path) -> BadFiles:
    """Return the input files that were left out when `folder` was made."""
    found = (read_json(folder / RECORD) or {}).get("bad_files")
    return {name: str(said) for name, said in found.items()} if isinstance(found, dict) else {}


def refuse_bad(cfg: Config, bad: BadFiles) -> None:
    """Raise UserError that lists the bad files, unless they are to be skipped."""
    if bad and not cfg.skip_bad_files:
        raise listed(bad, "mend or remove them, or go on without with --skip_bad_files")


def listed(bad: BadFiles, cure: str) -> UserError:
    """Return the error that lists bad files, and what to do."""
    more = [f"and {len(bad) - LISTED} more"] * (len(bad) > LISTED)
    lines = [*list(bad.values())[:LISTED], *more]
    files = "1 file" if len(bad) == 1 else f"{len(bad)} files"
    return UserError("\n  ".join([f"{files} cannot be used: {cure}", *lines]))
