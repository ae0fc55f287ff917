"""The plain loops that training, mining and testing are compared with.

They do what a first script would do: decode and augment the patches one by one in a DataLoader,
compute in float32, and test the network on one patch at a time. The DataLoader has no workers: on
2 cores they would compete with torch. With a GPU they would help, so a ratio measured there favours
Med-OoD.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader

from config import Config
from medood.models.network import build_model, normalisation
from tests import oracles


class Plain:
    """A network with its optimiser and data."""

    def __init__(self, cfg: Config, files: list, device: torch.device) -> None:
        self.files, self.device, constants = files, device, normalisation(cfg.encoder)
        self.model = build_model(cfg).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), cfg.lr)
        self.training = DataLoader(oracles.PlainDataset(files, *constants), cfg.batch_size, True)
        whole = oracles.PlainDataset(files, *constants, augmented=False)
        self.evaluation = DataLoader(whole, 1)

    def train(self) -> None:
        """Train for an epoch."""
        self.model.train()
        for images, masks in self.training:
            self.optimiser.zero_grad()
            logits = self.model(images.to(self.device))
            loss = oracles.plain_loss(logits, masks.to(self.device))
            loss.backward()
            self.optimiser.step()
            loss.item()

    @torch.no_grad()
    def mine(self) -> np.ndarray:
        """Return how many pixels of each patch are predicted as each class, (N, 7)."""
        self.model.eval()
        counts = []
        for image, _ in self.evaluation:
            found = self.model(image.to(self.device)).softmax(1).argmax(1)
            counts.append([(found == value).sum().item() for value in range(7)])
        return np.array(counts)

    @torch.no_grad()
    def margins(self) -> list[float]:
        """Return the largest lead of a foreground logit over that of background, for each patch.

        A patch with a lead above 0 is kept.
        """
        self.model.eval()
        logits = (self.model(image.to(self.device)) for image, _ in self.evaluation)
        return [(each[:, 1:].amax(1) - each[:, 0]).max().item() for each in logits]

    @torch.no_grad()
    def test(self) -> np.ndarray:
        """Return the confusion matrix of all patches, (7, 7), rows the truth."""
        self.model.eval()
        matrix = np.zeros((7, 7), np.int64)
        for image, mask in self.evaluation:
            found = self.model(image.to(self.device)).softmax(1).argmax(1).cpu().numpy()
            np.add.at(matrix, (mask.numpy().ravel(), found.ravel()), 1)
        return matrix
