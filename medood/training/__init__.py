"""How a network learns: augmentation, losses, one optimiser step, the one training loop."""
