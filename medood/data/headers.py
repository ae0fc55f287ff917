"""The header of an image file, read before any pixel of it is decoded."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from config import UserError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit
MAX_PIXELS = 2**29  # of an image or label that is read as a whole: a small file can claim more

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # that Pillow may decode
PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF
ORIENTATION = 0x0112  # the tag of TIFF and EXIF
JPEG = (6, 7)  # of TIFF's compressions
WHITE_AS_0 = "grey with white as 0"  # of TIFFs: values are stored inverted
MICRONS = {2: 25_400, 3: 10_000}  # in TIFF's units of resolution, inch and centimetre
# of Pillow's modes, and of TIFF's photometric interpretations; JPEG within TIFF, 6, becomes RGB
COLOURS = {"1": "grey", "L": "grey", "I": "grey", "P": "palette", "RGB": "RGB"}
TIFF_COLOURS = {0: WHITE_AS_0, 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "RGB"}


class Header(NamedTuple):
    """What a file claims to contain; height and width in pixels as stored."""

    height: int
    width: int
    orientation: int  # 2..8, as EXIF counts, mirrored or turned; others are upright
    pages: int
    bits: int  # per channel
    kind: str  # of a channel's numbers: "u", "i" (signed) or "f", as NumPy has it
    colours: str  # grey, palette, RGB, or the name of another kind
    channels: int
    has_alpha: bool  # the last channel is opacity
    is_lossy: bool  # compressed as JPEG
    mpp: tuple[float, float] | None = None  # microns per pixel, down and across

    def __str__(self) -> str:
        kind = {"i": ", signed", "f": ", floating-point"}.get(self.kind, "")
        return f"stored as {self.colours}, {self.channels} x {self.bits} bits{kind}"


def read_header(path: Path, data: bytes | None = None) -> Header:
    """Return the header of an image file.

    data: its content; without, a TIFF is read in parts, as whole slides do not fit into memory, and
    may be of any size. Raises UserError for a file that is cut off, claims more than MAX_PIXELS or
    has several pages, and for one that is to be turned.
    """
    is_whole = data is not None
    with path.open("rb") as file:
        begin = file.read(8)
    try:
        if begin.startswith(TIFF):
            from tifffile import TiffFile  # here: it takes a tenth of a second

            with TiffFile(BytesIO(data) if is_whole else path) as file:
                header = _of_tiff(file)
        else:
            header = _of_image(data if is_whole else path.read_bytes())
    except Exception:  # Pillow and tifffile raise a dozen kinds for a damaged header
        raise incomplete(path, "its header is damaged") from None
    if header.pages > 1:
        raise UserError(f"{path} has {header.pages} pages: save the page to be used as a file")
    if header.orientation in range(2, 9):
        raise UserError(
            f"{path} has the orientation {header.orientation} (in EXIF, 1 is upright), which some"
            " programs ignore: save it upright, such as by `mogrify -auto-orient`"
        )
    if is_whole:
        refuse_huge(path, header.height * header.width)
    return header


def incomplete(path: Path, reason: str) -> UserError:
    """Return the error to raise for an image file that cannot be read."""
    return UserError(
        f"{path} is not a complete image file, or of a kind that is not supported ({reason}):"
        " export it again, without compression"
    )


def refuse_huge(path: Path, pixels: int) -> None:
    """Raise UserError for a file that claims to have more pixels than are read."""
    if pixels > MAX_PIXELS:
        raise UserError(
            f"{path} claims to have {pixels:,} pixels, more than {MAX_PIXELS:,}: cut it into parts"
            " if the claim is right, or remove it"
        )


def _of_image(data: bytes) -> Header:
    """Return the header of a PNG, JPEG or BMP."""
    orientation, is_png = 1, data.startswith(PNG)
    with Image.open(BytesIO(data), formats=FORMATS) as file:
        channels, colours = file.getbands(), file.mode.removesuffix("A").split(";")[0]
        is_jpeg, frames = file.format in ("JPEG", "MPO"), getattr(file, "n_frames", 1)
        file.verify()  # a PNG's checksums, which decoding does not look at
    # Pillow decodes a PNG to look for EXIF behind its pixels: of none that is refused
    if not is_png or (b"eXIf" in data and file.width * file.height <= MAX_PIXELS):
        with Image.open(BytesIO(data), formats=FORMATS) as again:
            orientation = again.getexif().get(ORIENTATION, 1)
    return Header(
        height=file.height,
        width=file.width,
        orientation=orientation,
        pages=1 if is_jpeg else frames,  # a JPEG's second page is a preview
        # of a PNG as stored: Pillow cuts colours of 16 bits down to 8
        bits=data[24] if is_png else 1 if file.mode == "1" else 8,
        kind="u",
        colours=COLOURS.get(colours, colours),
        channels=len(channels),
        has_alpha=channels[-1] == "A",
        is_lossy=is_jpeg,
    )


def _of_tiff(file: "TiffFile") -> Header:
    """Return the header of a TIFF; the reduced copies in a pyramid are not pages."""
    first = file.pages.first
    samples, extra = first.samplesperpixel, first.extrasamples
    colours = TIFF_COLOURS.get(first.photometric, f"TIFF's kind {first.photometric}")
    return Header(
        height=first.imagelength,
        width=first.imagewidth,
        orientation=first.tags.valueof(ORIENTATION, default=1),
        pages=_pages(file, first),
        bits=first.bitspersample,
        kind="u" if first.dtype is None or first.dtype.kind == "b" else first.dtype.kind,
        colours=colours,
        channels=samples,
        # an unspecified one may be anything, such as another stain
        has_alpha=samples == (4 if colours == "RGB" else 2) and extra in ((1,), (2,)),
        is_lossy=first.compression in JPEG,
        mpp=_microns(first),
    )


def _microns(page: "TiffPage") -> tuple[float, float] | None:
    """Return the microns per pixel of a TIFF's resolution, down and across."""
    unit = MICRONS.get(page.tags.valueof("ResolutionUnit", default=2))
    found = [page.tags.valueof(f"{axis}Resolution") for axis in "YX"]
    if unit is None or not all(value and all(value) for value in found):
        return None
    down, across = (unit * below / above for above, below in found)
    return down, across


def _pages(file: "TiffFile", first: "TiffPage") -> int:
    """Return how many images a TIFF has, copies of the first in other sizes not counted.

    These are marked as reduced. Next to a tiled image, smaller ones in strips are the thumbnail,
    the label and the overview of a slide, as Aperio's scanners store them, which mark no copy.
    """

    def is_copy(page: "TiffPage") -> bool:
        is_smaller = page.imagelength < first.imagelength and page.imagewidth < first.imagewidth
        of_slide = first.is_tiled and is_smaller and (file.is_svs or not page.is_tiled)
        return bool(page.is_reduced or of_slide)

    pages = len(file.pages)
    if pages == 1 and not file.is_ome:  # a stack may have one header only; OME's may be in files
        plane = first.imagelength * first.imagewidth * first.samplesperpixel
        return max(1, file.series[0].size // plane)
    if first.is_reduced:  # the image it is a copy of comes after it
        return pages
    return 1 + sum(not is_copy(page) for page in file.pages[1:])
