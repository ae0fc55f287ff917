"""Files: where the user's may lie, and how results are written whole or not at all."""

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from config import Config, UserError
from medood.data.images import IMAGE_ENDINGS

PARTIAL, REPLACED = ".partial", ".replaced"  # endings of hidden names, while something is written
WRITTEN_TO = ("HardOoD", "k_folds", "models", "reports", "studies")  # beside the folders of patches
TIMES = "times.csv"  # in the workspace: in it, and in the report that shows it, equal runs differ
SOURCE_PREFIX = "source-"  # of the name of a patch that was cut from an image of ood_source
FOREGROUND = "foreground.json"  # in Mask_Patchs: how many pixels of each patch are foreground
NUCLEI_LIST = "nuclei.csv"  # in Semantic_Labels
NUCLEI_COLUMNS = ["region", "class", "x", "y"]
SAMPLE_NAME = "SAMPLE: synthetic tissue, not Lizard"
SAMPLE_MARK = "SAMPLE.txt"  # in a workspace whose tissue was drawn by medood/sample.py

# ---------------------------------------------------------------- finding


def region_images(cfg: Config) -> list[Path]:
    """Return the images of `images`, or of Lizard in any layout its archives unpack to; or []."""
    if cfg.images is not None:
        return list_images(cfg.images)
    folders = ("lizard_images", "lizard_images1", "lizard_images2")
    return _find(cfg.workspace, folders, ".png", depth=1)


def region_labels(cfg: Config) -> list[Path]:
    """Return the masks of `masks`, or the .mat files in Labels/ or Lizard_Labels/Labels/; or []."""
    if cfg.masks is not None:
        return list_images(cfg.masks)
    return _find(cfg.workspace, ("labels", "lizard_labels"), ".mat", depth=2)


def official_table(workspace: Path) -> Path | None:
    """Return Lizard's info.csv, or None."""
    found = _find(workspace, ("labels", "lizard_labels"), "info.csv", depth=1)
    beside = workspace / "info.csv"
    return beside if beside.exists() else (found[0] if found else None)


def require_data(cfg: Config) -> None:
    """Raise UserError, saying what belongs where, if there is nothing to start from."""
    workspace = cfg.workspace
    prepared = all(pngs(workspace / f"{kind}_Patchs") for kind in ("Image", "Mask"))
    if prepared or (region_images(cfg) and region_labels(cfg)):
        return
    raise UserError(
        f"no data in {workspace.resolve()}: looked for Lizard_Images1/ + Lizard_Images2/ (or"
        " Lizard_Images/) with .png and Lizard_Labels/Labels/ (or Labels/) with .mat, and for"
        " prepared Image_Patchs/ + Mask_Patchs/. Put Lizard there (README.md says where to get it),"
        " name another folder with --workspace, set images and masks to folders of your own, or try"
        " `python main.py --sample`"
    )


def _find(workspace: Path, folders: tuple[str, ...], ending: str, depth: int) -> list[Path]:
    """Files with `ending` in the named folders (any case) and `depth` levels of folders below."""
    if not workspace.is_dir():
        return []
    roots = [folder for folder in workspace.iterdir() if folder.name.lower() in folders]
    found = [
        path
        for root in roots
        for level in range(depth + 1)
        for path in root.glob("*/" * level + "*")
        # macOS archives carry a hidden `._name` beside each file
        if path.name.lower().endswith(ending) and not path.name.startswith(".")
    ]
    by_name: dict[str, Path] = {}
    for path in found:
        if path.name in by_name:
            raise UserError(f"{by_name[path.name]} and {path} have one name: remove one of them")
        by_name[path.name] = path
    return sorted(found, key=lambda path: path.name)


def pngs(folder: Path) -> list[Path]:
    """Return the .png files of `folder`, by name, without macOS's hidden ones; [] if no folder."""
    return sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))


def list_pngs(folder: Path, made_by: str) -> list[Path]:
    """Return the .png files of `folder`, by name; UserError naming `made_by` if there is none."""
    paths = pngs(folder)
    if not paths:
        raise UserError(f"no .png in {folder}: run `python {made_by}` first")
    return paths


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder of the user's, by name; UserError if there is none.

    Two that differ in their ending only would give patches of one name: refused.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: correct its name")
    found = folder.iterdir()
    kept = [path for path in found if path.suffix.lower() in IMAGE_ENDINGS]
    paths = sorted((path for path in kept if path.name[0] != "."), key=lambda path: path.stem)
    if not paths:
        raise UserError(f"no image ({', '.join(IMAGE_ENDINGS)}) in {folder}: put some there")
    for path, following in itertools.pairwise(paths):
        if path.stem == following.stem:
            raise UserError(f"{path} and {following} have one name: rename one of them")
    return paths


def list_patch_pairs(
    workspace: Path, left_out: Container[str] = ()
) -> tuple[list[Path], list[Path]]:
    """Return image and mask of every patch, in one order; UserError where one lacks its pair.

    left_out: the names of patches that cannot be used.
    """
    images, masks = (
        [path for path in paths if path.name not in left_out]
        for paths in (
            list_pngs(workspace / "Image_Patchs", made_by="generate_patches.py"),
            list_pngs(workspace / "Mask_Patchs", made_by="generate_patches.py"),
        )
    )
    lone = {path.name for path in images} ^ {path.name for path in masks}
    if lone:
        raise UserError(
            f"{min(lone)} is only in one of Image_Patchs and Mask_Patchs ({len(lone)} such in all):"
            " put its partner there, or run `python generate_patches.py` to make both anew"
        )
    return images, masks


def data_name(workspace: Path) -> str:
    """Return what a table or picture says its data are; the sample never passes for tissue."""
    return SAMPLE_NAME if (workspace / SAMPLE_MARK).exists() else workspace.resolve().name


def model_folder(cfg: Config, fold: int, ood: bool) -> Path:
    """Return where the baseline, or the Med-OoD network, of a fold lies."""
    return cfg.workspace / "models" / f"{fold}_{cfg.model_name}{'_ood' if ood else ''}"


def require_network(folder: Path) -> None:
    """Raise UserError, naming the command that trains it, if no network is in `folder`.

    A file is taken for one of weights.
    """
    if not folder.is_file() and not (folder / "config.json").is_file():
        command = "train_ood.py" if folder.name.endswith("_ood") else "train.py"
        raise UserError(
            f"no network (config.json, model.safetensors) in {folder}: run `python {command}` first"
        )


# ---------------------------------------------------------------- results, whole or not at all


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name to write a file to; it is called `path` once it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text`, whole or not at all."""
    with whole(path) as partial:
        partial.write_bytes(text.encode())


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def timed(workspace: Path, step: str) -> Iterator[None]:
    """Add how long a block took to <workspace>/times.csv, once it is through."""
    started = time.perf_counter()
    yield
    seconds = round(time.perf_counter() - started, 1)
    path = workspace / TIMES
    header = [] if path.exists() else [["finished", "step", "seconds"]]
    row = [datetime.now(UTC).isoformat(timespec="seconds"), step, seconds]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([*header, row])


def read_json(path: Path) -> dict | None:
    """Return a JSON object, or None where there is no such file or it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
    return content if isinstance(content, dict) else None


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header; UserError where it is none."""
    return list(read_rows(path))


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield what `read_table` returns: of a long table, one row at a time is in memory."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a CSV in UTF-8 ({error}): save it as one, or remove it to have it made"
        ) from None


def csv_text(header: list[str], rows: Iterable[Iterable]) -> str:
    """Return a table as CSV."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    return lines.getvalue()


def write_table(path: Path, header: list[str], rows: Iterable[Iterable]) -> int:
    """Write a table as CSV, whole or not at all, row by row; return the number of rows."""
    count = 0
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `folder` once it is full.

    An error or a kill on the way leaves what stood there before as it was.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
    old = folder.with_name(f".{folder.name}{REPLACED}")
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
    """Remove a file, a folder with all in it, or a link to one, but not what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what a killed run left half-written, and put back what it was about to replace."""
    left = list(folder.glob(".*"))
    for name in WRITTEN_TO:
        left += (folder / name).rglob(".*")
    for path in left:
        stands = path.with_name(path.name[1:].removesuffix(REPLACED))
        if path.name.endswith(REPLACED) and path.exists() and not stands.exists():
            path.rename(stands)
        elif path.name.endswith(REPLACED) or (path.name.endswith(PARTIAL) and not _at_work(path)):
            _remove(path)


def _at_work(partial: Path) -> bool:
    """Say whether the process that writes a file, as its name tells, still runs on this machine.

    export.py and predict.py write without holding the workspace.
    """
    process = partial.name.removesuffix(PARTIAL).rpartition(".")[2]
    if os.name != "posix" or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except (OSError, OverflowError):
        return False
    return True
