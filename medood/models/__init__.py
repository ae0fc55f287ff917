"""Networks: built from the settings, loaded from anywhere, applied to images.

encoders     what smp and timm give: networks by their description, weights of encoders
network      architecture and encoder, normalisation, device and precision
foreign      weights of others, read without running their code
checkpoints  folders of weights and settings; networks recognised from their weights
inference    a network on many patches
"""
