"""Names of files: one spelling of each, by which folders and tables are compared.

A file keeps its name on the disk; the plain one is compared, written into tables, or made a part
of another file's name.
"""

import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from config import UserError


def plain(name: str) -> str:
    """Return the one spelling of a name.

    macOS writes `ä` as two characters (NFD), others as one: here it is one (NFC). A byte of a name
    that is not UTF-8 becomes text that any file can contain, such as `\\udce4`. Spaces around the
    name, which tables often have, are removed.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFC", name.encode(errors="backslashreplace").decode())
    return name.strip()


def name_of(path: Path) -> str:
    """Return the plain name of a file, with its ending."""
    return plain(path.name)


def stem_of(path: Path) -> str:
    """Return the plain name of a file, without its ending."""
    return plain(path.stem)


def by_name(paths: Iterable[Path], name: Callable[[Path], str] = name_of) -> dict[str, Path]:
    """Return files by their plain names, in order; UserError for two with the same name."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(name(path), path)
        if other != path:
            how = "" if path.stem == other.stem else ", spelled in two ways (Unicode's NFC and NFD)"
            raise UserError(
                f"{other} and {path} have the same name{how}: rename or remove one of them"
            )
    return found
