"""The header of an image file, read before any pixel of it is decoded."""

import struct
import zlib
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from config import UserError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit
MAX_PIXELS = 2**29  # of an image or label that is read as a whole: a small file can claim more

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # how such files begin
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF
ORIENTATION = 0x0112  # the tag of TIFF and EXIF
# of Pillow's modes; bits are 8 in all others
BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}
WHITE_AS_0 = "grey with white as 0"  # of TIFFs: values are stored inverted
MICRONS = {2: 25_400, 3: 10_000}  # in TIFF's units of resolution, inch and centimetre
COLOURS = {"1": "grey", "L": "grey", "I": "grey", "F": "grey", "P": "palette", "RGB": "RGB"}


class Header(NamedTuple):
    """What a file claims to contain; height and width in pixels of the upright image."""

    height: int
    width: int
    orientation: int  # 1 is stored upright; 2..8, as EXIF counts, mirrored or turned
    pages: int
    bits: int  # per channel
    kind: str  # of a channel's numbers: "u", "i" (signed) or "f", as NumPy has it
    colours: str  # grey, palette, RGB, or the name of another kind
    channels: int
    has_alpha: bool  # the last channel is opacity
    compression: str  # of a TIFF as tifffile names it, JPEG, or empty: the format's own
    mpp: tuple[float, float] | None = None  # microns per pixel, down and across the upright image


def read_header(path: Path, data: bytes | None = None) -> Header:
    """Return the header of an image file.

    data: its content; without, a TIFF is read in parts, as whole slides do not fit into memory, and
    may be of any size. Raises UserError for a file that is cut off, claims more than MAX_PIXELS or
    has several pages.
    """
    is_whole = data is not None
    begin = data[:8] if data is not None else _begin(path)
    try:
        if begin.startswith(TIFF):
            from tifffile import TiffFile  # here: it takes a tenth of a second

            with TiffFile(path if data is None else BytesIO(data)) as file:
                header = _of_tiff(file)
        else:
            data = path.read_bytes() if data is None else data
            with Image.open(BytesIO(data)) as file:
                header = _of_image(file, data)
    except Exception:  # Pillow and tifffile raise a dozen kinds for a damaged header
        raise UserError(f"{path} is not a complete image file: unpack or export it again") from None
    if header.pages > 1:
        raise UserError(f"{path} has {header.pages} pages: save the page to be used as a file")
    if is_whole:
        refuse_huge(path, header.height * header.width)
    return header


def refuse_huge(path: Path, pixels: int) -> None:
    """Raise UserError for a file that claims to have more pixels than are read."""
    if pixels > MAX_PIXELS:
        raise UserError(
            f"{path} claims to have {pixels:,} pixels, more than {MAX_PIXELS:,}: cut it into parts"
            " if the claim is right, or remove it"
        )


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _upright(height: int, width: int, orientation: int) -> tuple[int, int, int]:
    """Return height and width of the upright image, and its orientation, 1 if it has none."""
    orientation = orientation if orientation in range(2, 9) else 1
    return (width, height, orientation) if orientation > 4 else (height, width, orientation)


def _of_image(file: Image.Image, data: bytes) -> Header:
    """Return the header of a file other than TIFF, opened by Pillow."""
    is_png, is_jpeg = data.startswith(PNG), data.startswith(JPEG)
    exif = _exif_of_png(data) if is_png else file.getexif()
    channels = file.getbands()
    colours = file.mode.removesuffix("A").split(";")[0]
    return Header(
        *_upright(file.height, file.width, exif.get(ORIENTATION, 1)),
        # a JPEG's second page is a preview
        pages=1 if is_jpeg else getattr(file, "n_frames", 1),
        bits=data[24] if is_png else BITS.get(file.mode, 8),  # Pillow cuts colours of 16 down to 8
        kind="f" if file.mode == "F" else "u",
        colours=COLOURS.get(colours, colours),
        channels=len(channels),
        has_alpha=channels[-1] == "A",
        compression="JPEG" if is_jpeg else "",
    )


def _exif_of_png(data: bytes) -> Image.Exif:
    """Return the EXIF entries of a PNG; an error if it is cut off or damaged.

    Bytes after its end are not damage. Pillow checks no checksum of pixels, and decodes them for
    the entries.
    """
    place, name, exif = len(PNG), b"", Image.Exif()
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        content = memoryview(data)[place + 8 : end]
        # chunks whose name begins in lower case decide no pixel
        if name[:1].isupper() and zlib.crc32(content, zlib.crc32(name)) != checksum:
            raise ValueError(name)
        if name == b"eXIf":
            exif.load(bytes(content))
        place = end + 4
    return exif


def _of_tiff(file: "TiffFile") -> Header:
    """Return the header of a TIFF; the reduced copies in a pyramid are not pages."""
    from tifffile import COMPRESSION, PHOTOMETRIC

    first = file.pages.first
    samples, extra = first.samplesperpixel, first.extrasamples
    own = 3 if first.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) else 1
    names = {
        PHOTOMETRIC.MINISBLACK: "grey",
        PHOTOMETRIC.MINISWHITE: WHITE_AS_0,
        PHOTOMETRIC.PALETTE: "palette",
        PHOTOMETRIC.RGB: "RGB",
        PHOTOMETRIC.YCBCR: "RGB",  # JPEG within TIFF: decoded to RGB
        PHOTOMETRIC.SEPARATED: "CMYK",
    }
    orientation = first.tags.valueof(ORIENTATION, default=1)
    return Header(
        *_upright(first.imagelength, first.imagewidth, orientation),
        pages=_pages(file, first),
        bits=first.bitspersample,
        kind="u" if first.dtype is None or first.dtype.kind == "b" else first.dtype.kind,
        colours=names.get(first.photometric) or _name(PHOTOMETRIC, first.photometric),
        channels=samples,
        # an unspecified one may be anything, such as another stain
        has_alpha=samples == own + 1 and len(extra) == 1 and extra[0] in (1, 2),
        compression=_name(COMPRESSION, first.compression),
        mpp=_microns(first, orientation),
    )


def _microns(page: "TiffPage", orientation: int) -> tuple[float, float] | None:
    """Return the microns per pixel of a TIFF's resolution, down and across when upright."""
    unit = MICRONS.get(page.tags.valueof("ResolutionUnit", default=2))
    found = [page.tags.valueof(f"{axis}Resolution") for axis in "YX"]
    if unit is None or not all(value and all(value) for value in found):
        return None
    down, across = (unit * below / above for above, below in found)
    return (across, down) if orientation in range(5, 9) else (down, across)


def _name(kind: type[Enum], value: int) -> str:
    """Return the name of a value of a tag, or its number if it has no name."""
    try:
        return kind(value).name
    except ValueError:
        return str(value)


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
