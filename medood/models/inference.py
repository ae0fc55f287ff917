"""A trained network on many patches: one batched pass, shared by mining, testing and predict.py."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, UserError
from medood.models.network import Normalise, autocast, folded, pick_device, refusal

# patches per forward pass: larger ones do not fit a CPU's cache, smaller ones do not fill a GPU
BATCH_ON_CPU, BATCH_ON_GPU = 8, 256


class Predictor:
    """A network, in eval mode, as a function of images on the device of the settings."""

    def __init__(self, cfg: Config, model: nn.Module) -> None:
        self.device, self.classes = pick_device(cfg.device), model.config["classes"]
        self.precision, self.mirrors = cfg.precision, cfg.mirrors
        self.at_once = batch_size(self.device)
        self.model = folded(model).to(self.device, memory_format=torch.channels_last)
        self.normalise = Normalise(model.config["encoder_name"]).to(self.device)

    @cached_property
    def takes_any_side(self) -> bool:
        """Whether the network takes images of other sizes than those it was trained on."""
        return not any(refusal(self.model, side) for side in (128, 160))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the probabilities, float32 (n, C, H, W), of RGB uint8 (n, H, W, 3).

        A batch that does not fit into the memory of the device is split in halves. Raises UserError
        for a single image that does not fit.
        """
        try:
            return self._probabilities(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise UserError(
                    f"{self.device} has too little memory for an image of {images.shape[1]} x"
                    f" {images.shape[2]} pixels: set device to cpu, or a smaller tile"
                ) from None
        return torch.cat([self(half) for half in images.chunk(2)])

    def _probabilities(self, images: Tensor) -> Tensor:
        batch = self.normalise(images.to(self.device).permute(0, 3, 1, 2).float())
        probability = self._mean_over_mirrors(batch) if self.mirrors else self._softmax(batch)
        # a CPU finds the most likely class 8 times as fast if a pixel's classes are contiguous
        return probability.contiguous(memory_format=torch.channels_last)

    def _softmax(self, batch: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            logits = self.model(batch)
        return logits.float().softmax(1)

    def _mean_over_mirrors(self, batch: Tensor) -> Tensor:
        """Return the mean probabilities over the eight symmetries of a square, turned back."""
        total = torch.zeros((), device=self.device)
        for turns in range(4):
            turned = batch.rot90(turns, (2, 3))
            seen = self._softmax(turned) + self._softmax(turned.flip(3)).flip(3)
            total = total + seen.rot90(-turns, (2, 3))
        return total / 8


def batch_size(device: torch.device) -> int:
    """Return how many patches a device processes at once."""
    return BATCH_ON_CPU if device.type == "cpu" else BATCH_ON_GPU


def count_pixels(probability: Tensor) -> Tensor:
    """Return how many pixels are predicted as each class, int64 (n, C), from (n, C, P, P)."""
    classes = probability.argmax(1)
    return torch.stack([(classes == value).sum((1, 2)) for value in range(probability.shape[1])], 1)


def predict(predictor: Predictor, images: Tensor, task: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the patches with their probabilities, float32 (n, C, P, P) on its device.

    images: RGB uint8 (N, P, P, 3). task: what the progress bar says.
    """
    size = predictor.at_once
    for start in tqdm(range(0, len(images), size), desc=task, leave=False, disable=None):
        part = slice(start, start + size)
        yield part, predictor(images[part])
