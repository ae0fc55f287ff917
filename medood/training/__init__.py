"""How a network learns.

augmentation  random changes of a batch
losses        Eq. 4 of the paper
step          one optimiser step
loop          the one training loop, of baseline and Med-OoD
tensorboard   its log for TensorBoard
"""
