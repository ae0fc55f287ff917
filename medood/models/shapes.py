"""What a network is, read from the names and shapes of its weights."""

import fnmatch
import functools
from collections.abc import Callable

import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from medood.models.foreign import Weights

HEAD = "segmentation_head.0.weight"  # its outputs are the classes
BLOCKS = "decoder.blocks.*.conv2.0.weight"
# architecture, a parameter of its decoder, and the weights whose numbers of outputs it is
WIDTHS = (
    ("unet", "decoder_channels", BLOCKS),
    ("unetplusplus", "decoder_channels", "decoder.blocks.x_0_*.conv2.0.weight"),
    ("manet", "decoder_channels", BLOCKS),
    ("manet", "decoder_pab_channels", "decoder.center.top_conv.weight"),
    ("fpn", "decoder_pyramid_channels", "decoder.p5.weight"),
    ("fpn", "decoder_segmentation_channels", "decoder.seg_blocks.0.block.0.block.0.weight"),
    ("pspnet", "psp_out_channels", "decoder.conv.0.weight"),
    ("deeplabv3", "decoder_channels", "decoder.conv.weight"),
    ("deeplabv3plus", "decoder_channels", "decoder.aspp.1.1.weight"),
    ("pan", "decoder_channels", "decoder.fpa.mid.0.conv.weight"),
    ("upernet", "decoder_channels", "decoder.fusion_block.0.weight"),
    ("segformer", "decoder_segmentation_channels", "decoder.fuse_stage.0.weight"),
)


def parameters_of(architecture: str, weights: Weights) -> dict:
    """Return the parameters of a network that the shapes of its weights tell: classes, widths."""
    found = {"classes": len(weights[HEAD])} if HEAD in weights else {}
    for name, parameter, pattern in WIDTHS:
        matches = sorted(fnmatch.filter(weights, pattern)) if name == architecture else []
        if matches and "*" in pattern:  # a width for each block
            widths = tuple(len(weights[match]) for match in matches)
            found |= {parameter: widths, "encoder_depth": len(widths)}
        elif matches:
            found[parameter] = len(weights[pattern])
    return found


@functools.cache
def encoder_shapes(encoder: str) -> dict[str, torch.Size]:
    """Return the names and shapes of the weights that an encoder of smp has in a network."""
    network = without_memory(functools.partial(get_encoder, encoder, weights=None))
    return {f"encoder.{name}": value.shape for name, value in network.state_dict().items()}


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `build` builds, with names and shapes of weights but no values."""
    try:
        with torch.device("meta"):
            return build()
    except RuntimeError:  # smp's mit encoders read values while they are built
        return build()
