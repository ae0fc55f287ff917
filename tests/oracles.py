"""Plainly written reference versions: slow, obvious, and the judges of the fast ones.

Tests compare results with them, bench/ compares times.
"""

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset


def semantic_mask(inst_map, ids, classes):
    """Class mask by one pass over the whole map per nucleus."""
    mask = np.zeros(inst_map.shape, np.uint8)
    for number, value in zip(ids, classes, strict=True):
        mask[inst_map == number] = value
    return mask


def tile(image, size):
    """Patches by slicing a canvas, one at a time."""
    height, width = image.shape[:2]
    rows, columns = -(-height // size), -(-width // size)
    canvas = np.zeros((rows * size, columns * size, *image.shape[2:]), image.dtype)
    top, left = (rows * size - height) // 2, (columns * size - width) // 2
    canvas[top : top + height, left : left + width] = image
    return [
        canvas[r * size : (r + 1) * size, c * size : (c + 1) * size]
        for r in range(rows)
        for c in range(columns)
    ]


def choose_pct(mask_paths, available, grid, optimum):
    """The share of OoD patches, reading every mask again for every value of the grid."""
    best = None
    for pct in grid:
        positives = negatives = 0
        for path in mask_paths:
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            positives += bool((mask != 0).any())
            negatives += bool((mask == 0).any())
        for _ in range(round(pct * available)):
            negatives += 1
        distance = abs(positives / negatives - optimum)
        if best is None or distance < best[0]:
            best = (distance, pct)
    return best[1]


class PlainDataset(Dataset):
    """Patches from disk, one at a time, decoded again in every epoch and augmented by OpenCV."""

    def __init__(self, files, mean, std, augmented=True):
        self.files, self.mean, self.std = files, np.float32(mean), np.float32(std)
        self.augmented = augmented

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image_path, mask_path = self.files[index]
        image = cv2.cvtColor(cv2.imread(str(image_path)), cv2.COLOR_BGR2RGB)
        if mask_path is None:
            mask = np.zeros(image.shape[:2], np.uint8)
        else:
            mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
        image = image.astype(np.float32)
        if self.augmented:
            image, mask = self.augment(image, mask)
        image = (image / 255 - self.mean) / self.std
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask).long()

    @staticmethod
    def augment(image, mask):
        """The same kinds of change as medood/training/augmentation.py, on one patch."""
        side = image.shape[0]
        u = np.random.default_rng().uniform(-1, 1, 13)
        warp = cv2.getRotationMatrix2D((side / 2, side / 2), 180 * u[0], 1.25 ** u[1])
        warp = np.vstack([warp, [1e-4 * u[2], 1e-4 * u[3], 1]])
        warp[:2, 2] += 0.1 * side * u[4:6]
        image = cv2.warpPerspective(image, warp, (side, side), borderMode=cv2.BORDER_REFLECT)
        mask = cv2.warpPerspective(
            mask, warp, (side, side), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
        )
        if u[6] < 0:
            image, mask = image[:, ::-1], mask[:, ::-1].copy()
        image = image * (1 + 0.2 * u[7]) * (1 + 0.05 * u[8:11])
        grey = image.mean(2, keepdims=True)
        image = grey + (image - grey) * (1 + 0.2 * u[11])
        image = image.mean() + (image - image.mean()) * (1 + 0.2 * u[12])
        return image.clip(0, 255).astype(np.float32), mask


def plain_loss(logits, target):
    """Dice per class over the batch, with a smoothing of one pixel, by a loop over classes."""
    probability = logits.softmax(1)
    terms = []
    for value in range(logits.shape[1]):
        p, t = probability[:, value], (target == value).float()
        terms.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    return torch.stack(terms).mean()
