"""Records: what a product was made from, so that a step knows whether its work is done.

A product is a folder or a file that a step wrote. Its record is a JSON file: made_from.json in a
folder of images, run.json in a network's folder, <name>.json beside <name>.csv. It holds

    made_from   the settings and the fingerprints of the inputs that decide the product
    outputs     the hash of the product itself; a table that it does not fit is the user's
    files       how many images a folder has
    bad_files   which inputs could not be used and were left out, and why

What has no record was put there by the user and is never overwritten.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from config import Config, UserError
from medood.data.files import (
    digest,
    in_threads,
    pngs,
    read_json,
    whole_folder,
    write_json,
    write_text,
)
from medood.data.images import missing

RECORD, RUN = "made_from.json", "run.json"
LISTED = 20  # of the bad files, in a message

BadFiles = dict[str, str]  # what is wrong, by the name of the file

# ---------------------------------------------------------------- hashes


def fingerprint(paths: Iterable[Path]) -> str:
    """Return one hash of the folders, names and contents of files, in any order."""

    def line(path: Path) -> str:
        return f"{hash_of(path)} {path.parent.name}/{path.name}"

    return digest("\n".join(sorted(in_threads(line, paths))).encode())


def contents(product: Path) -> str:
    """Return one hash of a file, or of the names and contents of the images in a folder."""
    if product.is_file():
        return hash_of(product)
    lines = in_threads(lambda path: f"{hash_of(path)} {path.name}", pngs(product))
    return digest("\n".join(lines).encode())


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file's content; UserError if it is not there."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise missing(path) from None
    return _hash_once(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache  # the steps of main.py look at the same files again and again
def _hash_once(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- records


def record_path(product: Path) -> Path:
    """Return where the record of a product lies."""
    if product.suffix in (".csv", ".json"):
        return product.with_suffix(".json")
    run = product / RUN
    return run if run.exists() else product / RECORD


def is_there(product: Path) -> bool:
    """Say whether a product has any content."""
    ours = any((product / name).is_file() for name in (RECORD, "config.json"))
    return product.is_file() or ours or bool(pngs(product))


def read_record(product: Path) -> dict | None:
    """Return the record of a product; None if it is not there, or was put there by the user."""
    record = read_json(record_path(product)) if is_there(product) else None
    if record is None or (product / "config.json").is_file() and "made_from" not in record:
        return None
    if product.suffix == ".csv" and record.get("outputs") != contents(product):
        return None
    made_from = record.get("made_from")
    return record | {"made_from": made_from if isinstance(made_from, dict) else {}}


def is_yours(product: Path) -> bool:
    """Say whether a product is there that the user put there."""
    return is_there(product) and read_record(product) is None


def out_of_date(product: Path, made_from: dict) -> str:
    """Return in words why a product is not what `made_from` gives, or "" if it is.

    A product of the user's is never out of date, nor one that has lost a source (None in
    `made_from`), since no step could make it again.
    """
    record = read_record(product)
    if record is None or None in made_from.values():
        return ""
    if not record["made_from"]:
        return "its record is of an earlier version"
    recorded, there = record.get("files"), len(pngs(product))
    lost = [] if recorded in (None, there) else [f"of its {recorded} files {there} are there"]
    return ", ".join([*lost, *changes(record["made_from"], made_from)])


def changes(before: dict, now: dict) -> list[str]:
    """Return what differs between two `made_from`, in words."""
    reasons = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            reasons += changes(old, new)
        elif name in ("inputs", "masks"):
            reasons.append("what it is made from changed")
        elif old is None or new is None or max(len(str(old)), len(str(new))) > 40:
            reasons.append(f"{name} changed")
        else:
            reasons.append(f"{name} was {old}, is {new}")
    return list(dict.fromkeys(reasons))


def is_kept(product: Path, made_from: dict) -> bool:
    """Say, also to the user, whether a product stays: made from `made_from`, or the user's.

    Raises UserError for one of ours whose content has changed since.
    """
    if not is_there(product):
        return False
    record = read_record(product)
    if record is None:
        print(f"{product}: kept, it was put there by you (remove it to have it made)")
        return True
    why = out_of_date(product, made_from)
    if not why:
        refuse_damaged(product)
    if not why and record.get("bad_files"):
        why = "files behind it could not be used"  # it may be the settings that were mended
    state = f"made again: {why}" if why else "kept, made from the same inputs and settings"
    print(f"{product}: {state}")
    return not why


def refuse_damaged(product: Path) -> None:
    """Raise UserError for a product of ours whose content is not what was made."""
    record = read_record(product) or {}
    if "outputs" in record and record["outputs"] != contents(product):
        latest = max(pngs(product), key=lambda path: path.stat().st_mtime_ns, default=product)
        raise UserError(
            f"{product} was changed, or damaged, since it was made ({latest.name} was written"
            f" last): remove it to have it made anew, or remove its {RECORD} to keep it as your own"
        )


@contextmanager
def fresh_folder(folder: Path, made_from: dict, bad: BadFiles | None = None) -> Iterator[Path]:
    """Give an empty folder to fill, and give it the name `folder` and a record when it is full.

    bad: the input files that are left out; may be filled on the way. After an error or a kill,
    `folder` is what it was before.
    """
    if is_yours(folder):
        raise UserError(f"{folder} was put there by you: remove it to have it made anew")
    with whole_folder(folder) as partial:
        yield partial
        outputs = {"files": len(pngs(partial)), "outputs": contents(partial)}
        write_json(partial / RECORD, {"made_from": made_from, **outputs, "bad_files": bad or {}})


def write_recorded(path: Path, text: str, made_from: dict) -> None:
    """Write a table with its record."""
    path.unlink(missing_ok=True)  # a table that its record does not fit passes for the user's
    write_json(record_path(path), {"made_from": made_from, "outputs": digest(text.encode())})
    write_text(path, text)


# ---------------------------------------------------------------- bad files


def bad_files(product: Path) -> BadFiles:
    """Return the input files that were left out when a folder was made."""
    found = (read_json(product / RECORD) or {}).get("bad_files")
    return {name: str(why) for name, why in found.items()} if isinstance(found, dict) else {}


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
