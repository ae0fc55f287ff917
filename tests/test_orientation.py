"""Images and masks that are to be turned are refused: some programs turn them, others do not."""

import numpy as np
import pytest
from PIL import Image
from tifffile import imwrite

from config import UserError
from medood.data.images import image_size, read_image, read_mask
from medood.predicting.slides import open_image
from weak.read_images import read_any

PIXELS = np.zeros((64, 80, 3), np.uint8)
READERS = (read_image, read_any, image_size, open_image, lambda path: read_mask(path, 2))


@pytest.mark.parametrize("orientation", [0, 1, 2, 6, 8, 9])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "tiled"])
def test_what_is_to_be_turned_is_refused_by_every_reader(tmp_path, kind, orientation):
    path = tmp_path / f"a.{'tif' if kind == 'tiled' else kind}"
    if kind in ("tif", "tiled"):
        tags, tile = [(274, 3, 1, orientation, True)], (64, 64) if kind == "tiled" else None
        imwrite(path, PIXELS, photometric="rgb", extratags=tags, tile=tile)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(PIXELS).save(path, exif=exif)
    for read in READERS[: 4 if kind == "jpg" else 5]:  # no mask is a JPEG
        if orientation in range(2, 9):
            with pytest.raises(UserError, match=f"has the orientation {orientation} .in EXIF, 1 "):
                read(path)
        else:
            read(path)
