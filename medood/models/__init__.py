"""Networks: built from settings, loaded from any file, applied to images.

encoders     from smp and timm: networks by their description, weights of encoders
network      architecture and encoder, normalisation, device and precision
foreign      weights from elsewhere, read without running their code
checkpoints  folders of weights and settings, and files of weights
inference    a network applied to many patches
"""
