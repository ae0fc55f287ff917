"""Maps of classes: where in an image a classifier sees each of them, and where to cut that.

For a classifier that takes the mean over a 1 x 1 head, all three have closed forms: the gradient of
a logit with respect to a feature is the head's weight over the number of pixels, everywhere. The
tests compare them with the grad-cam library, whose Grad-CAM++ cannot be used here: it adds 1e-6 to
the denominator of alpha, and the squared gradients of a mean over 256 pixels are no larger.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medood.data.labels import BACKGROUND, UNSURE
from medood.models.network import Normalise, autocast
from weak.arrays import on_device
from weak.classifier import Classifier, Kind
from weak.settings import MapsConfig

MAP_STRIDE = 4  # pixels of an image per pixel of the saved maps
BORDER = 0.5  # of the maximum of a map, or a probability: there a mask ends
TINY = 1e-12


def cam(classifier: Classifier, images: Tensor, scales: Iterable[float]) -> Tensor:
    """Return the class activation maps, (N, C, h, w), of normalised images (N, 3, H, W).

    ReLU(sum_k w_ck A_k), the mean over sizes of the image and its mirror image (Zhou et al. 2016;
    Ahn et al. 2019). h and w are those of the image over MAP_STRIDE.
    """
    size = [side // MAP_STRIDE for side in images.shape[2:]]
    total = torch.zeros(())
    for scale in scales:
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)
        for mirror in (False, True):
            found = classifier.maps(scaled.flip(3) if mirror else scaled).float().relu()
            found = placed(found, size, classifier.grid_shift)
            total = total + (found.flip(3) if mirror else found)
    return total / (2 * len(list(scales)))


def grad_cam(features: Tensor, weight: Tensor) -> Tensor:
    """Return Grad-CAM, (N, C, h, w), of features (N, K, h, w) under a head with weight (C, K).

    Selvaraju et al. 2017, Eq. 1-2: the weight of a feature is the mean of its gradient.
    """
    gradient = weight / features[0, 0].numel()
    return torch.einsum("ck,nkhw->nchw", gradient, features).relu()


def grad_cam_pp(features: Tensor, weight: Tensor) -> Tensor:
    """Return Grad-CAM++, as grad_cam does (Chattopadhay et al. 2018, Eq. 5 and 19).

    alpha = g^2 / (2 g^2 + sum(A) g^3), and the weight is the sum of alpha ReLU(g) over all pixels.
    """
    pixels = features[0, 0].numel()
    gradient = weight / pixels  # (C, K), the same at every pixel
    total = features.sum((2, 3))[:, None]  # (N, 1, K)
    square = gradient**2
    alpha = square / (2 * square + total * gradient**3 + TINY)  # (N, C, K)
    return torch.einsum("nck,nkhw->nchw", pixels * alpha * gradient.relu(), features).relu()


def resized(maps: Tensor, size: list[int]) -> Tensor:
    """Return maps (N, C, h, w) of another size, by bilinear interpolation."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def placed(maps: Tensor, size: Sequence[int], grid_shift: float) -> Tensor:
    """Return feature maps (N, C, h, w) of another size, each pixel at its place in the image.

    As `resized`, but with pixels up and left of their middle by a shift, in pixels of the given
    maps (see grid_shifts). Float32.
    """
    parts = zip(size, maps.shape[2:], strict=True)
    rows, columns = (_interpolation(*sides, grid_shift).to(maps.device) for sides in parts)
    # products of matrices, as the gradient of grid_sample is not deterministic on a GPU
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ maps.float() @ columns.T


def _interpolation(size: int, side: int, grid_shift: float) -> Tensor:
    """Return the share of each of `side` pixels in each of `size`, float32 (size, side)."""
    at = ((torch.arange(size) + 0.5) * side / size - 0.5 + grid_shift).clamp(0, side - 1)
    return (1 - (at[:, None] - torch.arange(side)).abs()).clamp_min(0)


def normalised(maps: Tensor, held: Tensor) -> Tensor:
    """Return each map divided by its maximum, and 0 for the classes that an image lacks.

    maps: floats from 0, (N, C, h, w). held: bool (N, C).
    """
    largest = maps.amax((2, 3), keepdim=True)
    return torch.where(held[:, :, None, None], maps / (largest + TINY), 0)


@torch.inference_mode()
def maps_of(
    cfg: MapsConfig,
    classifiers: dict[Kind, list[Classifier]],
    images: Tensor,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the raw maps of images by method, and the logits, (N, C), all on the CPU.

    Of several classifiers they are the mean. `contrast` are the class activation maps of the
    classifiers of that kind, if there are any; all else is from the plain ones.
    images: RGB uint8 (N, P, P, 3). A map is float32 (N, C, P / MAP_STRIDE, P / MAP_STRIDE).
    """
    normalise, precision = Normalise(cfg.encoder).to(device), autocast(cfg.precision, device)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for part in on_device(images, device, "maps"):
        batch = normalise(part)
        size = [side // MAP_STRIDE for side in batch.shape[2:]]
        of_batch: dict[str, list[Tensor]] = defaultdict(list)
        for classifier in classifiers["plain"]:
            with precision:
                features = classifier.features(batch)[-1].float()
                of_batch["cam"].append(cam(classifier, batch, cfg.scales))
            of_batch["logits"].append(classifier.head(features).mean((2, 3)))
            weight = classifier.head.weight[:, :, 0, 0]
            for name, method in (("grad_cam", grad_cam), ("grad_cam_pp", grad_cam_pp)):
                of_batch[name].append(placed(method(features, weight), size, classifier.grid_shift))
        for classifier in classifiers.get("contrast", []):
            with precision:
                of_batch["contrast"].append(cam(classifier, batch, cfg.scales))
        for name, values in of_batch.items():
            found[name].append(torch.stack(values).mean(0).cpu())
    maps = {name: torch.cat(parts) for name, parts in found.items()}
    return maps, maps.pop("logits")


# The image labels give the frequency of a class. At the threshold that as many training images
# reach as have the class, maps agree with the labels. The pixels above it are the class's area, to
# which maps of other kinds are cut.


def detection_threshold(maxima: Tensor, held: Tensor) -> float:
    """Return the value that as many of N images exceed as have a class.

    maxima: the highest value of each image's map, (N,). held: bool (N,), neither all nor none.
    """
    ordered = maxima.sort(descending=True).values
    count = int(held.sum())
    return float((ordered[count - 1] + ordered[count]) / 2)


def areas(maps: Tensor, held: Tensor) -> list[float]:
    """Return the share of pixels that a class covers in the images with it, by class.

    It is at least a pixel, as an image with a class shows it. maps: raw ones of all training
    images, with the class or not, (N, C, h, w). held: bool (N, C).
    """
    found = []
    for of_class, has in zip(maps.unbind(1), held.unbind(1), strict=True):
        threshold = detection_threshold(of_class.amax((1, 2)), has)
        share = (of_class[has] > threshold).float().mean().item()
        found.append(max(1 / of_class[0].numel(), share))
    return found


def thresholds_of(maps: Tensor, held: Tensor, areas: list[float]) -> list[float]:
    """Return the threshold of each class that gives it an area, on average over images with it.

    The area is at least a pixel, as in `areas`. maps: (N, C, h, w). held: bool (N, C). areas: as
    the function of that name returns them.
    """
    pixel = 1 / maps[0, 0].numel()
    by_class = zip(maps.unbind(1), held.unbind(1), areas, strict=True)
    return [threshold_of(of_class[has], max(pixel, area)) for of_class, has, area in by_class]


def threshold_of(maps: Tensor, area: float) -> float:
    """Return the value above which a share `area` of all pixels of maps (n, h, w) is."""
    ordered = maps.flatten().sort(descending=True).values
    place = min(round(area * len(ordered)), len(ordered) - 1)
    return float(ordered[place])


def masks_of(maps: Tensor, held: Tensor, thresholds: list[float]) -> Tensor:
    """Return the class of each pixel, uint8 (N, h, w), 0 where no class reaches its threshold.

    Of several, the class that exceeds its own threshold by the largest factor. maps: from 0,
    (N, C, h, w). held: bool (N, C). thresholds: of each class, above 0.
    """
    factors = maps / torch.tensor(thresholds).clamp_min(1e-6).view(-1, 1, 1)
    top, best = factors.masked_fill(~held[:, :, None, None], 0).max(1)
    return torch.where(top > 1, best + 1, 0).to(torch.uint8)


def masks_with_unsure(maps: Tensor, held: Tensor, limits: Sequence[list[float]]) -> Tensor:
    """Return the class of each pixel, as masks_of does, UNSURE where two thresholds differ.

    limits: strict and generous thresholds, as masks_of takes them.
    """
    inner, outer = (masks_of(maps, held, thresholds) for thresholds in limits)
    return torch.where(inner == outer, inner, UNSURE).to(torch.uint8)


def cut_at_half(
    maps: Iterable[Tensor], held: Tensor, training: Container[int], unsure: float
) -> Tensor:
    """Return the class of each pixel of N images, uint8 (N, P, P), by maps cut at BORDER.

    An image that trains is UNSURE within `unsure` of it. maps: of each image in turn, in 0..1,
    (C, P, P). held: bool (N, C). training: indices of those that train.
    """
    masks = []
    for index, of_image in enumerate(maps):
        width = unsure if index in training else 0
        limits = [[border] * len(of_image) for border in (BORDER + width, BORDER - width)]
        masks.append(masks_with_unsure(of_image[None], held[index : index + 1], limits))
    return torch.cat(masks)


def unsure_without_class(masks: Tensor, held: Tensor) -> Tensor:
    """Return masks whose background is UNSURE if a class of the image is missing, uint8 (N, P, P).

    Such a mask contradicts the label. masks: the class of each pixel. held: bool (N, C).
    """
    masks = masks.clone()
    for value, has in enumerate(held.unbind(1), 1):
        lacks = has & ~(masks == value).flatten(1).any(1)
        masks[lacks] = masks[lacks].masked_fill(masks[lacks] == BACKGROUND, UNSURE)
    return masks
