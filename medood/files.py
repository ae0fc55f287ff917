"""Files: where Lizard's may lie, how images are read, and how results are written whole or not.

Images are RGB everywhere in memory; OpenCV's BGR exists in this file only.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from config import Config, UserError

cv2.setNumThreads(1)  # images are read and written in parallel: OpenCV's own threads would fight it

TIMES = "times.csv"  # in the workspace: in it, and in the report that shows it, equal runs differ
RECORD = "made_from.json"  # in a folder that a step wrote: the settings and inputs it came from
SOURCE_PREFIX = "source-"  # of the name of a patch that was cut from an image of ood_source
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
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
    prepared = all(any((workspace / f"{kind}_Patchs").glob("*.png")) for kind in ("Image", "Mask"))
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


def list_pngs(folder: Path, made_by: str) -> list[Path]:
    """Return the .png files of `folder`, by name; UserError naming `made_by` if there is none."""
    paths = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
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


def list_patch_pairs(workspace: Path) -> tuple[list[Path], list[Path]]:
    """Return image and mask of every patch, in one order; UserError where one lacks its pair."""
    images = list_pngs(workspace / "Image_Patchs", made_by="generate_patches.py")
    masks = list_pngs(workspace / "Mask_Patchs", made_by="generate_patches.py")
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


# ---------------------------------------------------------------- images


def _missing(path: Path) -> UserError:
    return UserError(f"{path} is missing: put it back, or make its folder anew")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _missing(path) from None


def _decode(path: Path, flag: int) -> np.ndarray:
    data = _read_bytes(path)
    # OpenCV fills what a truncated PNG lacks with black and says nothing: look for its last chunk
    whole = not data.startswith(b"\x89PNG") or b"IEND" in data[-12:]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data and whole else None
    except cv2.error as error:  # more pixels than OpenCV takes
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    if image is None:
        raise UserError(f"{path} is not a whole image file: unpack or make it again")
    return image


def read_image(path: Path) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3); raise UserError where it cannot be read."""
    return cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_mask(path: Path, classes: int) -> np.ndarray:
    """Return a class mask as uint8 (H, W), values below `classes`; UserError for other content."""
    mask = _decode(path, cv2.IMREAD_UNCHANGED)
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max() >= classes:
        raise UserError(
            f"{path} is not a class mask (one channel, 8 bits, values 0..{classes - 1}):"
            " delete its folder to make it anew"
        )
    return mask


def png_size(path: Path) -> tuple[int, int]:
    """Return height and width of a PNG file in pixels, without decoding it."""
    width, height = struct.unpack(">II", _read_bytes(path)[16:24])
    return height, width


def write_png(path: Path, image: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3) or a mask uint8 (H, W)."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # OpenCV's default settings write a patch in 0.4 ms; asking for a level takes twice that
    encoded = cv2.imencode(".png", image)[1]
    path.write_bytes(encoded.tobytes())


# ---------------------------------------------------------------- results, whole or not at all


def write_text(path: Path, text: str) -> None:
    """Write `text` under a temporary name, then rename it: `path` is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_bytes(text.encode())
    os.replace(aside, path)


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
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def csv_text(header: list[str], rows: Iterable[Iterable]) -> str:
    """Return a table as CSV."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    return lines.getvalue()


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(paths: Iterable[Path]) -> str:
    """Return one hash of the folders, names and contents of files, in any order."""

    def line(path: Path) -> str:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise _missing(path) from None
        return f"{content} {path.parent.name}/{path.name}"

    with ThreadPoolExecutor() as pool:
        lines = sorted(pool.map(line, paths))
    return digest("\n".join(lines).encode())


@contextmanager
def fresh_folder(folder: Path, record: dict) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the name `folder`, with `record`, once it is full.

    An error or a kill on the way leaves what stood at `folder` before as it was.
    """
    if any(folder.glob("*.png")) and not (folder / RECORD).exists():
        raise UserError(f"{folder} was put there by you: remove it to have it made anew")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_json(partial / RECORD, {**record, "files": _count_pngs(partial)})
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, removing what stood there."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def is_kept(folder: Path, record: dict) -> bool:
    """Say whether `folder` stays: made from `record` and complete, or put there by the user.

    A folder without a record was not written by these scripts, so they never overwrite it.
    """
    if not any(folder.glob("*.png")):
        return False
    if read_json(folder / RECORD) is None:
        print(f"{folder}: kept, it was put there by you (remove it to have it made)")
        return True
    if is_made_from(folder, record):
        print(f"{folder}: kept, made from the same inputs and settings")
        return True
    return False


def is_made_from(folder: Path, record: dict) -> bool:
    """Say whether `fresh_folder` filled `folder` from `record`, and no image of it is lost."""
    return read_json(folder / RECORD) == {**record, "files": _count_pngs(folder)}


def _count_pngs(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.png"))
