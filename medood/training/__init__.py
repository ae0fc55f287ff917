"""How a network learns.

augmentation  random changes of the patches in a batch
losses        Eq. 4 of the paper
step          one optimiser step
batches       the batches of an epoch
state         what an interrupted training goes on from
loop          the one training loop, of baseline and Med-OoD
tensorboard   its log for TensorBoard
"""
