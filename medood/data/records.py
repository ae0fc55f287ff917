"""Records: what a product was made from, so that a step knows whether it is out of date.

A product is a folder or a file that a step wrote. Its record is a JSON file: made_from.json in a
folder of images, run.json in a network's folder, <name>.json next to <name>.csv; a product that is
JSON contains its own record. It contains

    made_from   the settings and the fingerprints of the inputs that decide the product
    outputs     the hashes of the product itself; if they differ, it was changed later
    files       how many images a folder has
    bad_files   which inputs could not be used and were skipped, and why

What has no record is user-supplied and never overwritten. What was changed is neither
used nor overwritten: that is an error.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from config import UserError
from medood.data import files
from medood.data.names import plain

RECORD, RUN = "made_from.json", "run.json"
# in the folder of a product, but not part of it: records, texts for readers, unfinished trainings
NO_PART = (RECORD, RUN, "README.md", "log.csv", "resume.pt")
MANY = (".png", ".npz")  # endings of files of which a product may have thousands
IMAGES = "*.png"  # all images of a product, among its hashes
LISTED = 20  # of the bad files, in a message

BadFiles = dict[str, str]  # what is wrong, by the name of the file


# what became of a product: see `Record.state`
MISSING, YOURS, CHANGED, OUT_OF_DATE, CURRENT = range(5)


class Record(NamedTuple):
    """What is on the disk of a product, and what its record says."""

    product: Path
    path: Path  # of the record
    is_there: bool  # the product has any content
    images: int  # in its folder
    content: dict | None  # of the record; None if the product is absent, or user-supplied

    @property
    def is_yours(self) -> bool:
        """Say whether the product is user-supplied."""
        return self.is_there and self.content is None

    @property
    def bad_files(self) -> BadFiles:
        """The input files that were skipped when the product was generated."""
        found = (self.content or {}).get("bad_files")
        return {name: str(why) for name, why in found.items()} if isinstance(found, dict) else {}

    def state(self, made_from: Callable[[], dict], images: bool = True) -> tuple[int, str]:
        """Return what became of the product, and of a CHANGED or OUT_OF_DATE one, in words, why.

        made_from: gives what decides the product now. images: open them too. CHANGED comes before
        OUT_OF_DATE: the change may be the user's correction.
        """
        if not self.is_there:
            return MISSING, ""
        if self.content is None:
            return YOURS, ""
        if names := self._changed(images):
            return CHANGED, self._refusal(names)
        why = self.out_of_date(made_from())
        return (OUT_OF_DATE if why else CURRENT), why

    def out_of_date(self, made_from: dict) -> str:
        """Return in words why the product is not what `made_from` gives, or "" if it is.

        A user-supplied product is never out of date, nor one that has lost a source (None in
        `made_from`), since no step could regenerate it.
        """
        if self.content is None or None in made_from.values():
            return ""
        before, made = self.content.get("made_from"), self.content.get("files")
        if not before or not isinstance(before, dict):
            return "its record is of an earlier version"
        lost = made not in (None, self.images)
        reasons = [f"{self.images} of its {made} files are present"] if lost else []
        return ", ".join(reasons + changes(before, made_from))

    def outputs(self, images: bool = True) -> dict[str, str] | str:
        """Return the hashes of the product as it is now, by the rule that its record follows.

        Of a file: one hash. Of a folder: by name, those of the files in its record, as later files
        are not part of it; without a record, of all files. images: open them too.
        """
        made = (self.content or {}).get("outputs")
        if self.path == self.product:
            return _hash_of_json(self.content or {})
        if self.product.is_file():
            return files.hash_of(self.product)
        now = hashes(self.product, images)
        return {name: now[name] for name in now if not isinstance(made, dict) or name in made}

    def _changed(self, images: bool) -> list[str]:
        """Return the names of the files that are not as the step wrote them, or are missing.

        Missing images do not count: see `out_of_date`.
        """
        made, count = ((self.content or {}).get(name) for name in ("outputs", "files"))
        if not isinstance(made, dict):  # a folder with one hash for all of it is of an old version
            is_same = made is None or not self.product.is_file() or self.outputs() == made
            return [] if is_same else [self.product.name]
        now, skip_images = self.outputs(images), isinstance(count, int) and self.images < count
        names = [name for name in made if name != IMAGES or (images and not skip_images)]
        return [name for name in names if now.get(name) != made[name]]

    def _refusal(self, names: list[str]) -> str:
        keep = f"remove {self.path} to keep it as user-supplied"
        if self.path == self.product:
            keep = "remove `made_from` from it to keep it as user-supplied"
        elif self.path.name == RUN:
            keep = "move it elsewhere to keep it"
        return (
            f"{self.product} was changed, or damaged, since it was generated"
            f" ({', '.join(names[:LISTED])}): remove it to have it regenerated, or {keep}"
        )


def record_of(product: Path) -> Record:
    """Return the record of a product: made_from.json, run.json of a network, JSON of a table.

    Raises UserError for a record that cannot be read: the product may be user-supplied or not.
    """
    images, path = len(files.pngs(product)), product / RECORD
    if product.suffix in (".csv", ".json"):
        path = product.with_suffix(".json")
    elif (product / RUN).exists():
        path = product / RUN
    is_there = product.is_file() or (product / RECORD).is_file() or any(_files_of(product))
    content = files.read_json(path) if is_there else None
    if content is None and is_there and path.is_file():
        keep = "" if path == product else f", or remove {path} to keep it as user-supplied"
        raise UserError(f"{path} cannot be read: remove {product} to have it regenerated{keep}")
    if content is not None and path.name != RECORD and "made_from" not in content:
        content = None  # a JSON file of that name, or a network, that no step wrote
    return Record(product, path, is_there, images, content)


def hashes(folder: Path, images: bool = True) -> dict[str, str]:
    """Return a hash of each file of a product, by name, with folders below.

    All images share one, `*.png`, and so do all arrays, `*.npz`. images: open them too.
    """
    paths = [path for path in _files_of(folder) if images or path.suffix != ".png"]
    lines: dict[str, list[str]] = {}
    for path, found in zip(paths, files.in_threads(files.hash_of, paths), strict=True):
        name = plain(path.relative_to(folder).as_posix())
        group = f"*{path.suffix}" if path.suffix in MANY else name
        lines.setdefault(group, []).append(f"{found} {name}")
    return {name: files.digest("\n".join(sorted(part))) for name, part in lines.items()}


def _files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a product in a folder, without hidden ones and those of NO_PART."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (Path(parent, name) for name in names if name[0] != "." and name not in NO_PART)


def _hash_of_json(content: dict) -> str:
    """Return the hash of the values in a product that is JSON, its record included."""
    rest = {name: value for name, value in content.items() if name != "outputs"}
    return files.digest(json.dumps(rest, sort_keys=True))


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
            reasons.append("its inputs changed")
        elif old is None or new is None or max(len(str(old)), len(str(new))) > 40:
            reasons.append(f"{name} changed")
        else:
            reasons.append(f"{name} was {old}, is {new}")
    return list(dict.fromkeys(reasons))


def is_kept(product: Path, made_from: dict) -> bool:
    """Say, also to the user, whether a product stays: current with `made_from`, or user-supplied.

    Raises UserError for one that a step wrote and that was changed since.
    """
    record = record_of(product)
    state, why = record.state(lambda: made_from)
    if state == CHANGED:
        raise UserError(why)
    if state == CURRENT and record.bad_files:
        state, why = OUT_OF_DATE, "some of its inputs could not be used"
    said = {
        YOURS: "kept, user-supplied (remove it to have it generated)",
        OUT_OF_DATE: f"regenerated: {why}",
        CURRENT: "kept, made from the same inputs and settings",
    }
    if state in said:
        print(f"{product}: {said[state]}")
    return state in (YOURS, CURRENT)


def refuse_unusable(
    record: Record, made_from: Callable[[], dict], again: Callable[[], str], images: bool = True
) -> None:
    """Raise UserError if a product is missing, was changed, or is not what `made_from` gives.

    again: gives the command that regenerates it. images: open them too.
    """
    state, why = record.state(made_from, images)
    if state == MISSING:
        raise UserError(f"{record.product} is missing: run `{again()}` first")
    if state == CHANGED:
        raise UserError(why)
    if state == OUT_OF_DATE:
        raise UserError(
            f"{record.product} is out of date ({why}): undo the change, or run `{again()}` first"
        )


@contextmanager
def fresh_folder(folder: Path, made_from: dict, bad: BadFiles | None = None) -> Iterator[Path]:
    """Give an empty folder to fill; give it the name `folder` and a record when it is complete.

    bad: the input files that are skipped; may be filled meanwhile. After an error or a kill,
    `folder` is what it was before.
    """
    if record_of(folder).is_yours:
        raise UserError(f"{folder} is user-supplied: remove it to have it regenerated")
    with files.whole_folder(folder) as partial:
        yield partial
        outputs = {"files": len(files.pngs(partial)), "outputs": hashes(partial)}
        files.write_json(
            partial / RECORD, {"made_from": made_from, **outputs, "bad_files": bad or {}}
        )


def write_recorded(path: Path, text: str, made_from: dict) -> None:
    """Write a table with its record.

    After a kill in between the table is missing: it counts neither as changed nor as user-supplied.
    """
    path.unlink(missing_ok=True)
    record = {"made_from": made_from, "outputs": files.digest(text)}
    files.write_json(path.with_suffix(".json"), record)
    files.write_text(path, text)


def write_own_record(path: Path, content: dict, made_from: dict) -> None:
    """Write a product that is JSON and contains its own record."""
    content = json.loads(json.dumps(content | {"made_from": made_from}))
    files.write_json(path, content | {"outputs": _hash_of_json(content)})


def refuse_bad(bad: BadFiles, skip: bool = False) -> None:
    """Raise UserError that lists the bad files, unless they are to be skipped."""
    if bad and not skip:
        raise listed(bad, "correct or remove them, or continue without them: --skip_bad_files")


def listed(bad: BadFiles, cure: str) -> UserError:
    """Return the error that lists bad files, and what to do."""
    more = [f"and {len(bad) - LISTED} more"] * (len(bad) > LISTED)
    lines = [*list(bad.values())[:LISTED], *more]
    files = "1 file" if len(bad) == 1 else f"{len(bad)} files"
    return UserError("\n  ".join([f"{files} cannot be used: {cure}", *lines]))
