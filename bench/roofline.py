"""The least time of a training step on a GPU, on paper: `python bench/roofline.py`.

The script counts, in a step on the CPU, what is computed, moved and launched, and works out from
the data sheets of two GPUs how long that takes at least. It measures no time.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import (
    Figures,
    MeasureConfig,
)
from bench.variants import depthwise_as_the_rest, step_of
from medood.runs.command_line import run

NETWORKS = ("vgg11_bn", "mobilenet_v2")  # encoders of unet
# bfloat16 FLOP/s without sparsity and bytes/s, of NVIDIA's data sheets for the SXM modules
GPUS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
IN_PRACTICE = (0.8, 0.9)  # shares of these that large products and copies reach: an assumption
LAUNCH = 5e-6  # seconds of the host for each operation of an eager step: an assumption
RECORDED = 5  # launches of a step that were one CUDA graph: 4 copies of the batch and 1 replay
# operations that only name memory; those that torch marks as views are left out too
NO_LAUNCH = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach"}
NO_LAUNCH |= {"_unsafe_view", "_reshape_alias", "lift_fresh", "squeeze_"}
NO_LAUNCH |= {"_record_function_enter_new", "_record_function_exit"}
# what no fusion takes away: all else could be done where these read or write
UNFUSED = {"convolution", "convolution_backward", "_fused_adamw_"}


class Traffic(TorchDispatchMode):
    """Counts the operations of what runs in it, and the bytes of their inputs and outputs.

    operations: without views. moved: bytes by operation, if each reads every input once and writes
    every output once, and no cache holds any of them for the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        if not function.is_view and name not in NO_LAUNCH:
            given = zip(function._schema.arguments, args, strict=False)
            # Adam would write its gradients only to scale them
            written = [value for known, value in given if known.is_write and known.name != "grads"]
            self.operations[name] += 1
            # what is written in place may be returned, or not: it counts once
            self.moved[name] += size((args, kwargs)) + max(size(found), size(written))
        return found


def size(values: object) -> int:
    """Return the bytes of all tensors in a structure."""
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def bench(cfg: MeasureConfig) -> None:
    """Work out the least time of a step from its counts, which are made on the CPU."""
    cfg = replace(cfg, device="cpu", precision="bfloat16", encoder_weights="none", compile=False)
    figures = Figures("roofline", f"the least time of a step of {cfg.batch_size} patches, on paper")
    figures.content |= {"gpus": GPUS, "in_practice": IN_PRACTICE, "launch_s": LAUNCH}
    figures.content["networks"] = {}
    for encoder in NETWORKS:
        take_step = step_of(replace(cfg, encoder=encoder), depthwise_as_the_rest)
        take_step()  # Adam makes its state in the first one
        with FlopCounterMode(display=False) as counter:
            take_step()
        with Traffic() as traffic:
            take_step()
        moved = traffic.moved.total()
        fused = sum(traffic.moved[name] for name in UNFUSED)
        counts = {"flop": counter.get_total_flops(), "bytes": moved, "fused_bytes": fused}
        counts |= {"operations": traffic.operations.total(), "recorded": RECORDED}
        counts["floors_ms"] = {}
        for name, peaks in GPUS.items():
            rate, bandwidth = (share * peak for share, peak in zip(IN_PRACTICE, peaks, strict=True))
            needed = {"arithmetic": counts["flop"] / rate, "memory": moved / bandwidth}
            needed["fused_memory"] = fused / bandwidth
            counts["floors_ms"][name] = {of: 1000 * seconds for of, seconds in needed.items()}
        figures.content["networks"][encoder] = counts
        print(
            f"unet on {encoder}: {counts['flop'] / 1e9:.0f} GFLOP, {moved / 1e9:.2f} GB,"
            f" {counts['operations']} operations; worked out, in ms at least:"
        )
        for name, floor in counts["floors_ms"].items():
            print(f"  {name}  " + ", ".join(f"{of} {ms:.2f}" for of, ms in floor.items()))
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, MeasureConfig())
