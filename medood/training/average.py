"""The moving average of a network in training: steadier than the network itself."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A network that follows another one, step by step.

    average = d * average + (1 - d) * network, where d = min(decay, 1 - 1 / (1 + t)) after t steps:
    at first the plain mean of the networks so far, in the end an exponential one (Tarvainen and
    Valpola, "Mean teachers are better role models", NeurIPS 2017, and their own code).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.model = copy.deepcopy(network).eval().requires_grad_(False)
        # a tensor: a recorded step would repeat a number of Python's as it was
        device = next(network.parameters()).device
        self.register_buffer("steps", torch.zeros((), device=device))
        self.eval()

    @torch.no_grad()
    def follow(self, network: nn.Module, counts: Tensor | float = 1.0) -> None:
        """Move towards the network, its running means and variances included.

        counts: 1; 0 for a step after which the average is to be the network itself.
        """
        self.steps += counts
        rate = (1 / (1 + self.steps)).clamp(min=1 - self.decay)
        own = self.model.state_dict()
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                own[name].lerp_(value, rate.to(value.dtype))
