"""The region (an image) that a patch was cut from, and the patient of that region.

Without the setting `patients`, the patient is the region itself or, under Lizard's official split,
its slide: several of Lizard's regions come from one.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from config import Config, UserError
from medood.data.files import read_rows
from medood.data.images import IMAGE_ENDINGS
from medood.data.names import plain
from medood.data.workspace import official_table


def region_of(patch: str) -> str:
    """Return the region that a patch was cut from: `glas_1_07.png` -> `glas_1`."""
    return patch.rsplit("_", 1)[0]


def patients_of(cfg: Config, patches: Iterable[str]) -> list[str]:
    """Return the patient of each patch, as the setting `patients` says; if None, slide or region.

    Raises UserError for a damaged table, and if it or the pattern does not cover a region.
    """
    regions = [region_of(name) for name in patches]
    if cfg.patients is None:
        slides = _read_slides(cfg.workspace) if cfg.split == "official" else {}
        return [slides.get(region, region) for region in regions]
    images = {region: without_ending(region) for region in regions}
    if cfg.patients.lower().endswith(".csv"):
        patient_of = _read_patients(Path(cfg.patients))
        missed = "{} does not name the image {}: add a row for it"
    else:
        patient_of = _match_patients(cfg.patients, images.values())
        missed = "patients = {!r} does not match the whole name of image {}: correct the pattern"
    if lost := sorted(set(images.values()) - patient_of.keys()):
        raise UserError(missed.format(cfg.patients, lost[0]))
    return [patient_of[images[region]] for region in regions]


def _read_patients(path: Path) -> dict[str, str]:
    """Return the patient of each image that a CSV names, with or without its ending."""
    if not path.is_file():
        raise UserError(f"patients: there is no file {path}: correct its name")
    patient_of: dict[str, str] = {}
    for number, row in read_rows(path, ("img_name", "patient")):
        image, patient = (row.get(name, "") for name in ("img_name", "patient"))
        if not image or not patient:
            raise UserError(
                f"{path}: row {number} lacks img_name or patient: give the table both columns, and"
                " fill them in"
            )
        before = patient_of.setdefault(without_ending(image), patient)
        if before != patient:
            raise UserError(
                f"{path} assigns {image} to patient {before} and to {patient}: remove one row"
            )
    return patient_of


def _read_slides(workspace: Path) -> dict[str, str]:
    """Return the slide of each region, from Lizard's info.csv; {} if there is none.

    A Source, such as train_22, names a slide only within the set that the region came from: glas,
    crag, consep ...
    """
    table = official_table(workspace)
    rows = [row for _, row in read_rows(table, ("filename", "source"))] if table else []
    sources = {without_ending(row["filename"]): row["source"] for row in rows if row.get("source")}
    return {region: f"{region_of(region)}/{source}" for region, source in sources.items()}


def _match_patients(pattern: str, images: Iterable[str]) -> dict[str, str]:
    """Return group 1 of the pattern for each image whose whole name matches."""
    found = {image: re.fullmatch(plain(pattern), image) for image in images}
    return {image: match[1] for image, match in found.items() if match and match[1]}


def without_ending(image: str) -> str:
    """Return an image's name without its ending: `case.1.png` and `case.1` -> `case.1`."""
    ending = Path(image).suffix
    return image.removesuffix(ending) if ending.lower() in IMAGE_ENDINGS else image
