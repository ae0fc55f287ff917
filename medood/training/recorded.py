"""A whole optimiser step as one CUDA graph: a GPU's host starts it with a single launch."""

from collections.abc import Callable

import torch
from torch import Tensor

from config import UserError

WARM_UP = 3  # steps that run as usual first: torch picks kernels and makes its state in them


class RecordedStep:
    """A function of tensors on a GPU that is recorded once and then replayed.

    The memory of its inputs and outputs is fixed: what a call returns holds until the next one. All
    that changes from step to step must be in tensors, for a number of Python is recorded as it was.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self.steps = 0
        self.stream: torch.cuda.Stream | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns; all inputs have the shapes of the first ones."""
        if self.steps < WARM_UP:
            self.steps += 1
            return self._beside(inputs)
        if self.graph is None:
            self._record(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs

    def _beside(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run the function on the stream of the recording, as torch asks of the steps before it."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()  # one: each has memory of its own
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Record the function, without running it."""
        self.inputs = [given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"compile = True: a step cannot be recorded on this GPU ({reason}): set it to False"
            ) from None
        self.graph = graph
