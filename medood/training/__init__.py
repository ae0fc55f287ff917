"""How a network learns.

augmentation  random changes of the patches in a batch
losses        Eq. 4 of the paper
batches       the batches of an epoch
segmentation  how a segmentation network is trained: a step on a batch, and a fold
protocol      the interface of a training: parts, epochs and steps
loop          the one training loop, of every network, and its curves for TensorBoard
state         the state from which an interrupted training continues
"""
