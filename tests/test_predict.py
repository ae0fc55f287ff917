"""New images: tiles that fade into each other, and what is written; see test_slides.py."""

import dataclasses
import json
import re
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from skimage.draw import disk
from skimage.measure import label
from tifffile import imread, imwrite
from torch import nn

from config import UserError
from medood.data.files import read_table
from medood.data.images import read_image, write_png
from medood.data.labels import palette
from medood.models.inference import Predictor
from medood.models.network import Normalise, build_model
from medood.predicting.nuclei import NucleusFinder
from medood.predicting.outputs import ENDINGS, Outputs
from medood.predicting.slides import open_image
from medood.predicting.tiles import OVERLAP, fade, positions, strips
from predict import PredictConfig, predict_images
from tests.conftest import TINY, as_settings_of, drawn_tissue, run_program, write_slide

COLOURS = palette(TINY.classes)


class ByColour(nn.Module):
    """A network that calls a pixel the class whose colour it has: no learning, known output."""

    def __init__(self):
        super().__init__()
        self.config = {"classes": len(COLOURS), "encoder_name": TINY.encoder}
        shown = torch.tensor(COLOURS).float().T.view(1, 3, -1, 1)
        shown = Normalise(TINY.encoder)(shown).permute(2, 1, 0, 3)
        self.colours = nn.Parameter(shown, requires_grad=False)

    def forward(self, images):  # (N, 3, H, W) -> (N, C, H, W)
        return -20 * (images[:, None] - self.colours[None]).square().sum(2)


@pytest.fixture
def by_colour():
    return Predictor(TINY, ByColour())


def coloured(height, width, seed=0):
    """A mask of drawn nuclei, and the image in which each pixel has the colour of its class."""
    _, mask = drawn_tissue(seed, height, width)
    return mask, COLOURS[mask]


@pytest.mark.parametrize("length", [1, 128, 129, 192, 193, 1000])
@pytest.mark.parametrize("tile", [128, 160])
def test_tiles_cover_every_pixel_and_their_weights_add_up_to_one_where_they_overlap(length, tile):
    weight, count = torch.zeros(length + tile), torch.zeros(length + tile, dtype=torch.int64)
    for start in positions(length, tile):
        weight[start : start + tile] += fade(tile)
        count[start : start + tile] += 1
    assert count[:length].min() >= 1
    torch.testing.assert_close(weight[count == 2], torch.ones(int((count == 2).sum())))
    # no tile that the others cover already
    assert len(positions(length, tile)) == 1 or positions(length, tile)[-1] + OVERLAP < length


@pytest.mark.parametrize(
    ("size", "tile"), [((40, 50), 128), ((128, 128), 128), ((129, 300), 256), ((333, 257), 128)]
)
def test_strips_give_what_the_network_gives_on_the_whole_image(tmp_path, by_colour, size, tile):
    mask, image = coloured(*size)
    write_png(tmp_path / "image.png", image)
    source = open_image(tmp_path / "image.png")
    rows, classes, certainty = map(
        np.concatenate, zip(*strips(by_colour, source, *size, tile, "test"), strict=True)
    )
    np.testing.assert_array_equal(rows, image)
    np.testing.assert_array_equal(classes, mask)
    whole = by_colour(torch.from_numpy(image)[None])[0].max(0).values.numpy()
    np.testing.assert_allclose(certainty / 255, whole, atol=0.01)


def test_tiles_fade_into_each_other_in_both_directions(tmp_path):
    """The network says where a pixel is in its tile: 0 at its upper left, 1 at the other end."""
    tile, ramp = 128, torch.linspace(0, 0.5, 128)
    said = ramp[:, None] + ramp
    network = mock.Mock(
        side_effect=lambda images: torch.stack([1 - said, said]).expand(len(images), -1, -1, -1)
    )
    network.configure_mock(device=torch.device("cpu"), classes=2, at_once=8)
    image = np.random.default_rng(0).integers(0, 256, (200, 250, 3), np.uint8)
    write_png(tmp_path / "image.png", image)
    source = open_image(tmp_path / "image.png")
    *_, certainty = map(
        np.concatenate, zip(*strips(network, source, 200, 250, tile, ""), strict=True)
    )
    weight, sums = fade(tile)[:, None] * fade(tile), torch.zeros(2, 400, 400)
    for top in positions(200, tile):
        for left in positions(250, tile):
            box = sums[:, top : top + tile, left : left + tile]
            box += torch.stack([said * weight, weight])
    expected = (sums[0] / sums[1])[:200, :250]
    expected = torch.maximum(expected, 1 - expected).numpy()
    np.testing.assert_allclose(certainty / 255, expected, atol=0.003)


def test_a_tile_of_glass_is_background_without_the_network(tmp_path, by_colour, monkeypatch):
    image = np.full((200, 200, 3), 240, np.uint8)
    image += np.random.default_rng(0).integers(0, 10, image.shape, np.uint8)
    write_png(tmp_path / "glass.png", image)
    monkeypatch.setattr(Predictor, "__call__", lambda *_: pytest.fail("was run"))
    found = list(strips(by_colour, open_image(tmp_path / "glass.png"), 200, 200, 128, "test"))
    assert not any(classes.any() for _, classes, _ in found)
    assert all((certainty == 255).all() for _, _, certainty in found)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A folder as smp's save_pretrained writes it, of a small network that knows nothing."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    build_model(TINY).save_pretrained(folder)
    return folder


def settings(tmp_path, network, *images, **changes):
    given = {"checkpoint": network, "out": tmp_path / "out", "image": images, "tile": 128}
    return as_settings_of(PredictConfig, TINY, **given | changes)


@pytest.fixture
def colour_network(monkeypatch):
    """The network of any folder is the one by colour."""
    monkeypatch.setattr("medood.models.checkpoints.open_model", lambda *_: ByColour())


@pytest.mark.parametrize("longest", [4096, 30])
def test_the_overlay_tells_touching_nuclei_of_one_class_apart(tmp_path, monkeypatch, longest):
    monkeypatch.setattr("medood.predicting.outputs.OVERLAY", longest)
    shape, step = (40, 60), 60 // min(longest, 60)
    classes = np.zeros(shape, np.uint8)
    for column in (20, 36):
        classes[disk((20, column), 10)] = 2
    with ExitStack() as files:
        outputs = Outputs(files, tmp_path / "image", TINY, shape, np.ones(2))
        outputs.add_rows(np.full((*shape, 3), 128, np.uint8), classes)
        for nucleus in NucleusFinder(shape, 2.0, 1).add(classes, classes):
            outputs.add_nucleus(nucleus)
        outputs.finish()
    overlay = read_image(tmp_path / "image_overlay.png")
    assert overlay.shape == (40 // step, 60 // step, 3)
    lines = (overlay == COLOURS[2]).all(2)
    inside = (classes[::step, ::step] > 0) & ~lines
    assert label(inside, return_num=True)[1] == 2
    if step == 1:
        assert not lines[classes == 0].any()


@pytest.mark.usefixtures("colour_network")
def test_mask_table_and_outlines_say_the_same(tmp_path, network):
    mask, image = coloured(200, 250)
    write_png(tmp_path / "image.png", image)
    predict_images(settings(tmp_path, network, tmp_path / "image.png", min_area=0.0))
    stem = tmp_path / "out" / "image"
    np.testing.assert_array_equal(imread(f"{stem}_mask.tif"), mask)
    rows = read_table(Path(f"{stem}_nuclei.csv"))
    shapes = json.loads(Path(f"{stem}_nuclei.geojson").read_text())
    assert shapes["type"] == "FeatureCollection"
    assert len(rows) == len(shapes["features"]) > 20
    assert sum(float(row["area_px"]) for row in rows) == (mask > 0).sum()
    colour_of = dict(zip(TINY.class_names, COLOURS.tolist(), strict=True))
    for row, shape in zip(rows, shapes["features"], strict=True):
        assert (shape["type"], shape["geometry"]["type"]) == ("Feature", "Polygon")
        (ring,) = shape["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        place = [float(row["x"]), float(row["y"])]
        assert (np.min(ring, axis=0) <= place).all()
        assert (np.max(ring, axis=0) >= place).all()
        kind = {"name": row["class"], "color": colour_of[row["class"]]}
        properties = shape["properties"]
        assert (properties["objectType"], properties["classification"]) == ("detection", kind)
        assert float(row["area_um2"]) == pytest.approx(0.25 * float(row["area_px"]), abs=0.01)
        assert 0.5 < float(row["probability"]) <= 1
    overlay = read_image(Path(f"{stem}_overlay.png"))
    np.testing.assert_array_equal(overlay[mask == 0], image[mask == 0])
    assert json.loads(Path(f"{stem}.json").read_text())["nuclei"].keys() <= set(TINY.class_names)


@pytest.mark.usefixtures("colour_network")
@pytest.mark.parametrize(
    ("name", "across", "down", "mpp"), [("image.png", 2, 2, 0.25), ("slide.tif", 2, 3, None)]
)
def test_an_image_of_another_scale_is_brought_to_the_networks_and_back(
    tmp_path, network, capsys, name, across, down, mpp
):
    small, image = coloured(200, 260)
    image = np.kron(image, np.ones((down, across, 1), np.uint8))
    path = tmp_path / name
    if mpp is None:  # a slide's own: pixels per cm; the network's is 0.5 microns
        scale = {"resolution": (20_000 * across, 20_000 * down), "resolutionunit": "CENTIMETER"}
        write_slide(path, image, **scale)
    else:
        write_png(path, image)
    predict_images(settings(tmp_path, network, path, image_mpp=mpp, min_area=0.0))
    stem = tmp_path / "out" / path.stem
    np.testing.assert_array_equal(imread(f"{stem}_mask.tif"), small)
    rows = read_table(Path(f"{stem}_nuclei.csv"))
    assert sum(float(row["area_um2"]) for row in rows) == pytest.approx(0.25 * (small > 0).sum())
    assert sum(float(row["area_px"]) for row in rows) == across * down * (small > 0).sum()
    assert max(float(row["x"]) for row in rows) > 260  # in pixels of the image as it is
    said = "0.25 microns\n" if mpp else f"pixels of {0.5 / across:g} x {0.5 / down:g} microns\n"
    assert said in capsys.readouterr().out


def test_what_is_done_is_kept_and_other_settings_do_it_again(tmp_path, network, capsys):
    write_png(tmp_path / "image.png", coloured(100, 100)[1])
    cfg = settings(tmp_path, network, tmp_path / "image.png")
    predict_images(cfg)
    capsys.readouterr()
    predict_images(cfg)
    assert "image.json: kept" in capsys.readouterr().out
    for change in ({"watershed": False}, {"mirrors": True}):
        predict_images(dataclasses.replace(cfg, **change))
        assert "image.json: regenerated" in capsys.readouterr().out


def test_a_bad_image_or_one_of_a_name_that_is_taken_does_not_stop_the_others(tmp_path, network):
    write_png(tmp_path / "good.png", coloured(64, 64)[1])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG, not really")
    with pytest.raises(UserError, match=r"not segmented: bad\.png \(1 in all\)"):
        predict_images(settings(tmp_path, network, tmp_path))
    done = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert done.keys() == {"good.json", *(f"good{ending}" for ending in ENDINGS)}
    (tmp_path / "other").mkdir()
    write_png(tmp_path / "other" / "good.png", coloured(64, 64, 2)[1])
    with pytest.raises(UserError, match=r"not segmented: good\.png"):
        predict_images(settings(tmp_path, network, tmp_path / "other" / "good.png"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ()}, "no image"),
        ({"image": (Path("nowhere.png"),)}, "there is no image nowhere.png"),
        ({"checkpoint": None}, "--checkpoint"),
        ({"checkpoint": Path("nowhere")}, "there is no folder nowhere: correct its name"),
        ({"checkpoint": Path("docs")}, "no network .* in docs: name the folder of one, or train"),
    ],
)
def test_what_is_missing_or_has_the_name_of_another_is_named(tmp_path, network, change, message):
    write_png(tmp_path / "image.png", coloured(64, 64)[1])
    cfg = settings(tmp_path, network, tmp_path / "image.png")
    with pytest.raises(UserError, match=message):
        predict_images(dataclasses.replace(cfg, **change))
    with pytest.raises(UserError, match="is the folder of the images"):
        predict_images(dataclasses.replace(cfg, out=tmp_path))
    (tmp_path / "image.jpg").touch()
    with pytest.raises(UserError, match="image.* and .*image.* have the same name"):
        predict_images(dataclasses.replace(cfg, image=(*cfg.image, tmp_path / "image.jpg")))


def test_a_batch_that_does_not_fit_is_given_in_halves(by_colour, monkeypatch):
    mask, image = coloured(64, 64)
    sizes = []
    probabilities = Predictor._probabilities

    def small(self, images):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return probabilities(self, images)

    monkeypatch.setattr(Predictor, "_probabilities", small)
    found = by_colour(torch.from_numpy(np.stack([image] * 5)))
    assert sizes == [5, 3, 2, 1, 2]
    np.testing.assert_array_equal(found.argmax(1).numpy(), np.stack([mask] * 5))
    monkeypatch.setattr(Predictor, "_probabilities", mock.Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(UserError, match="memory for an image of 64 x 64 pixels: set device"):
        by_colour(torch.from_numpy(image[None]))


@pytest.mark.long
def test_a_slide_of_20000_x_20000_pixels_takes_less_than_2_gb(tmp_path, network):
    """1.2 GB of pixels and, were they all in memory, 11 GB of probabilities."""
    side, tile = 20_000, 256
    _, tissue = coloured(1024, 1024)

    def tiles():
        for row in range(0, side, tile):
            for column in range(0, side, tile):
                part = tissue[row % 1024 :, column % 1024 :][:tile, :tile]
                # an island of tissue on glass, whose tiles do not go through the network
                inside = 8000 <= row < 11000 and 6000 <= column < 12000
                yield part if inside else np.full((tile, tile, 3), 240, np.uint8)

    as_tiles = {"shape": (side, side, 3), "dtype": np.uint8, "tile": (tile, tile)}
    imwrite(tmp_path / "slide.tif", tiles(), photometric="rgb", compression="zlib", **as_tiles)
    words = tmp_path / "slide.tif", "--checkpoint", network, "--out", tmp_path / "out"
    said = run_program(
        f"import runpy, sys; sys.argv = {['predict.py', *map(str, words)]}\n"
        "runpy.run_path('predict.py', run_name='__main__')\n"
        "print(open('/proc/self/status').read())"
    )
    # ru_maxrss would count what pytest held when it started the script
    assert int(re.search(r"VmHWM:\s+(\d+) kB", said)[1]) < 2e6
    assert imread(tmp_path / "out" / "slide_mask.tif").shape == (side, side)
    assert max(read_image(tmp_path / "out" / "slide_overlay.png").shape) <= 4096
