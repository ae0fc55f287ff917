"""Records: what a product was made from, so that a step knows whether its work is done.

A product is a folder or a file that a step wrote. Its record is a JSON file: made_from.json in a
folder of images, run.json in a network's folder, <name>.json beside <name>.csv. It holds

    made_from   the settings and the fingerprints of the inputs that decide the product
    outputs     the hash of the product itself; a table that it does not fit is the user's
    files       how many images a folder has
    bad_files   which inputs could not be used and were left out, and why

What has no record was put there by the user and is never overwritten.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from config import Config, UserError
from medood.data import files

RECORD, RUN = "made_from.json", "run.json"
LISTED = 20  # of the bad files, in a message

BadFiles = dict[str, str]  # what is wrong, by the name of the file

# ---------------------------------------------------------------- records


class Record(NamedTuple):
    """What lies on the disk of a product, and what its record says."""

    product: Path
    is_there: bool  # the product has any content
    images: int  # in its folder
    content: dict | None  # of the record; None where the product is absent, or the user's

    @property
    def is_yours(self) -> bool:
        """Say whether the user put the product there."""
        return self.is_there and self.content is None

    @property
    def bad_files(self) -> BadFiles:
        """The input files that were left out when the product was made."""
        found = (self.content or {}).get("bad_files")
        return {name: str(why) for name, why in found.items()} if isinstance(found, dict) else {}

    def out_of_date(self, made_from: dict) -> str:
        """Return in words why the product is not what `made_from` gives, or "" if it is.

        A product of the user's is never out of date, nor one that has lost a source (None in
        `made_from`), since no step could make it again.
        """
        if self.content is None or None in made_from.values():
            return ""
        before, made = self.content.get("made_from"), self.content.get("files")
        if not before or not isinstance(before, dict):
            return "its record is of an earlier version"
        lost = made not in (None, self.images)
        reasons = [f"of its {made} files {self.images} are there"] if lost else []
        return ", ".join(reasons + changes(before, made_from))

    def refuse_damaged(self) -> None:
        """Raise UserError for a product of ours whose content is not what was made."""
        made = (self.content or {}).get("outputs")
        if made is not None and made != files.contents(self.product):
            images = files.pngs(self.product)
            latest = max(images, key=lambda path: path.stat().st_mtime_ns, default=self.product)
            raise UserError(
                f"{self.product} was changed, or damaged, since it was made ({latest.name} was"
                " written last): remove it to have it made anew, or remove its"
                f" {RECORD} to keep it as your own"
            )


def record_of(product: Path) -> Record:
    """Return the record of a product: made_from.json, run.json of a network, JSON of a table."""
    images, run = files.pngs(product), product / RUN
    is_network = (product / "config.json").is_file()
    is_there = is_network or bool(images) or product.is_file() or (product / RECORD).is_file()
    path = run if run.exists() else product / RECORD
    if product.suffix in (".csv", ".json"):
        path = product.with_suffix(".json")
    content = files.read_json(path) if is_there else None
    if content is not None:
        foreign = is_network and "made_from" not in content
        changed = product.suffix == ".csv" and content.get("outputs") != files.hash_of(product)
        content = None if foreign or changed else content
    return Record(product, is_there, len(images), content)


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
    record = record_of(product)
    if not record.is_there:
        return False
    if record.is_yours:
        print(f"{product}: kept, it was put there by you (remove it to have it made)")
        return True
    why = record.out_of_date(made_from)
    if not why:
        record.refuse_damaged()
        why = "files behind it could not be used" if record.bad_files else ""
    state = f"made again: {why}" if why else "kept, made from the same inputs and settings"
    print(f"{product}: {state}")
    return not why


@contextmanager
def fresh_folder(folder: Path, made_from: dict, bad: BadFiles | None = None) -> Iterator[Path]:
    """Give an empty folder to fill, and give it the name `folder` and a record when it is full.

    bad: the input files that are left out; may be filled on the way. After an error or a kill,
    `folder` is what it was before.
    """
    if record_of(folder).is_yours:
        raise UserError(f"{folder} was put there by you: remove it to have it made anew")
    with files.whole_folder(folder) as partial:
        yield partial
        outputs = {"files": len(files.pngs(partial)), "outputs": files.contents(partial)}
        files.write_json(
            partial / RECORD, {"made_from": made_from, **outputs, "bad_files": bad or {}}
        )


def write_recorded(path: Path, text: str, made_from: dict) -> None:
    """Write a table with its record."""
    path.unlink(missing_ok=True)  # a table that its record does not fit passes for the user's
    record = {"made_from": made_from, "outputs": files.digest(text)}
    files.write_json(path.with_suffix(".json"), record)
    files.write_text(path, text)


# ---------------------------------------------------------------- bad files


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
