"""Networks: built from the settings, loaded from anywhere, applied to images.

network      architecture and encoder, normalisation, device and precision
foreign      weights of others, read without running their code
shapes       what a network is, read from the shapes of its weights
checkpoints  folders of weights and settings
inference    a network on many patches
"""
