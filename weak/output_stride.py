"""An encoder's output stride: how to lower it, and where the maps then are on the image."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

OUTPUT_STRIDE = 8  # pixels of an image per pixel of its maps, along each side
PROBE = 64  # pixels of the image that shows where an encoder has strides


def strided_layers(encoder: nn.Module) -> list[tuple[str, nn.Module, int]]:
    """Return the layers that make an encoder's maps smaller, in the order of their use.

    Each with its name and the stride of its input.
    """
    layers: list[tuple[str, nn.Module, int]] = []

    def note(name: str, layer: nn.Module) -> RemovableHandle:
        return layer.register_forward_pre_hook(
            lambda _, given: layers.append((name, layer, PROBE // given[0].shape[-1]))
        )

    kinds = nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d
    hooks = [note(*pair) for pair in encoder.named_modules() if isinstance(pair[1], kinds)]
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, PROBE, PROBE))
    for hook in hooks:
        hook.remove()
    encoder.train()
    return [found for found in layers if _side(found[1].stride) > 1]


def set_output_stride(encoder: nn.Module) -> None:
    """Keep an encoder from making its maps smaller than 1 / OUTPUT_STRIDE of the image.

    A convolution or pooling that would is applied at every pixel instead. The layers after it are
    not dilated, as is common: then the network would see as much around a pixel as before, and its
    maps would localise less.
    """
    for name, layer, stride in strided_layers(encoder):
        if stride < OUTPUT_STRIDE:
            continue
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.MaxPool2d):
            encoder.set_submodule(name, _maximum_at_every_pixel(layer))
        else:
            encoder.set_submodule(name, nn.Identity())  # of a shortcut: a mean of one pixel


def grid_shifts(encoder: nn.Module) -> list[float]:
    """Return how far each feature map is shifted up and left, in its own pixels.

    A map is placed on an image as if each of its pixels were the mean of those it covers. But a
    3 x 3 convolution of stride 2, padded by 1, is centred on pixels 0, 2, 4, ... rather than on .5,
    2.5, 4.5, ..., and the next one on 0, 4, 8, ... At stride 8 that is 3.5 pixels of the image.

    0 if the two agree, below 0 for a map shifted down and right. encoder: before
    set_output_stride.
    """
    layers = {stride: layer for _, layer, stride in strided_layers(encoder)}  # the last at each
    pixels, shifts = 0.0, []  # of the image; of a map
    for stride in (2**level for level in range(len(encoder.out_channels) - 1)):
        layer, keeps_stride = layers.get(stride), stride < OUTPUT_STRIDE
        # a convolution that is applied at every pixel is centred on it
        if layer and (keeps_stride or isinstance(layer, nn.MaxPool2d)):
            step = _side(layer.stride) if keeps_stride else 1
            offset = (step - _side(layer.kernel_size)) / 2 + _side(layer.padding)
            pixels += min(stride, OUTPUT_STRIDE) * offset
        shifts.append(pixels / min(2 * stride, OUTPUT_STRIDE))
    return shifts


def _maximum_at_every_pixel(layer: nn.MaxPool2d) -> nn.Module:
    """Return a pooling that keeps the size of its input."""
    size, before = _side(layer.kernel_size), _side(layer.padding)
    after = size - 1 - before
    pad = nn.ConstantPad2d((before, after, before, after), -torch.inf)
    return nn.Sequential(pad, nn.MaxPool2d(size, 1))


def _side(size: int | tuple[int, int]) -> int:
    """Return the height of a layer's setting, which torch stores as one number or as two."""
    return size if isinstance(size, int) else size[0]
