"""A stand-in for a GPU: a device of torch's own kind whose tensors are computed on the CPU.

What a GPU refuses is refused here too: an operation on tensors of two devices. What would make the
host wait is noted. The results are those of the CPU, so what a whole step of
Med-OoD computes here can be compared with what it should.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

try:  # from torch 2.10 on
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register
except ImportError:
    register = None

aten = torch.ops.aten
NAME = "standin"
# a value on the host, or a shape that depends on values: the host waits for both
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put_", "_index_put_impl_"}


class Backend:
    """What torch asks a device's module for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def is_available(self) -> bool:
        return current is not None  # torch never forgets a device: other tests must not find it

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return int(self.is_available())

    def current_device(self) -> int:
        return 0

    def _lazy_init(self) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...


class OnStandin(torch.Tensor):
    """A tensor on the stand-in, which holds the tensor on the CPU that it is computed with."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnStandin":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return current.run(function, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict) -> "OnStandin":
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        """Be saved as the tensor on the CPU."""
        return self.inner.__reduce_ex__(protocol)


class Standin(TorchDispatchMode):
    """The device while it is there: a context in which torch knows it. waits: why the host did."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.pinned: dict[int, torch.Tensor] = {}  # by storage; kept, so that none is used again

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)

    @contextlib.contextmanager
    def never_waiting(self) -> Iterator[None]:
        """A context in which it is an error if the host waits."""
        self.waits.clear()
        yield
        if self.waits:
            raise RuntimeError(f"the host waits: {', '.join(self.waits)}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def run(self, function: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
        """Run an operation of torch, on the device if its tensors are there."""
        name = function.overloadpacket.__name__
        if name == "is_pinned":
            return args[0].untyped_storage().data_ptr() in self.pinned
        if name == "_pin_memory" or kwargs.get("pin_memory"):
            return self._pin(function, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_ours = any(isinstance(tensor, OnStandin) for tensor in tensors)
        target = kwargs.get("device")
        target = torch.device(target).type if target is not None else None
        if is_ours:
            self._refuse_two_devices(name, args, tensors)
        if self._host_waits(name, args, kwargs, is_ours, target):
            self.waits.append(name)
        args_there, kwargs_there = tree_map_only(OnStandin, lambda t: t.inner, (args, kwargs))
        if target == NAME:
            kwargs_there["device"] = torch.device("cpu")
        found = function(*args_there, **kwargs_there)
        if target != NAME and (not is_ours or target is not None):
            return found  # on the CPU
        wrapped = tree_map_only(torch.Tensor, OnStandin, found)
        return return_and_correct_aliasing(function, args, kwargs, wrapped) if is_ours else wrapped

    def _pin(self, function: torch._ops.OpOverload, args: tuple, kwargs: dict) -> torch.Tensor:
        """Return a tensor of the CPU from which a copy to the device lets the host go on."""
        is_copy = "pin_memory" not in kwargs
        made = args[0].clone() if is_copy else function(*args, **kwargs | {"pin_memory": False})
        self.pinned[made.untyped_storage().data_ptr()] = made
        return made

    def _refuse_two_devices(self, name: str, args: tuple, tensors: list[torch.Tensor]) -> None:
        on_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnStandin)]
        if name in COPIES or not any(tensor.dim() for tensor in on_cpu):
            return
        if name in INDEXING and isinstance(args[0], OnStandin):
            self.waits.append(name)  # a GPU takes such indices, after a copy
            return
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, found {NAME} and cpu"
        )

    def _host_waits(
        self, name: str, args: tuple, kwargs: dict, is_ours: bool, target: str | None
    ) -> bool:
        """Say whether the host waits: for a value, or a copy between devices not out of pinned."""
        if name not in COPIES:
            return name in WAITS and is_ours
        if name == "_to_copy":
            source, goal = args[0], target or _device_of(args[0])
            asks_to_go_on = kwargs.get("non_blocking", False)
        else:
            source, goal = args[1], _device_of(args[0])
            asks_to_go_on = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if _device_of(source) == goal:
            return False
        can_go_on = goal == NAME and source.untyped_storage().data_ptr() in self.pinned
        return not (asks_to_go_on and can_go_on)


def _device_of(tensor: torch.Tensor) -> str:
    return NAME if isinstance(tensor, OnStandin) else "cpu"


current: Standin | None = None
_libraries: list[torch.library.Library] = []


@contextlib.contextmanager
def started() -> Iterator[Standin]:
    """Let torch know a stand-in in a context; torch learns of the kind at the first call."""
    global current
    if not _libraries:
        register(NAME, backend_module=Backend())
        everything, of_aten = (torch.library.Library(part, "IMPL") for part in ("_", "aten"))
        _libraries.extend((everything, of_aten))  # what they register lives as long as they
        everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        # torch.tensor(value, device=...) comes here past every context
        of_aten.impl("empty_strided", _empty, "PrivateUse1")
        of_aten.impl("_copy_from", _copy_from, "PrivateUse1")
    current = Standin()
    try:
        # the engine counts its devices at the first backward pass of a process, and gives each a
        # thread: this one may have come later
        with torch.autograd.set_multithreading_enabled(False), current:
            yield current
    finally:
        current = None


def _empty(*args: object, **kwargs: object) -> object:
    return current.run(aten.empty_strided.default, args, kwargs)


def _copy_from(source: torch.Tensor, target: torch.Tensor, *args: object) -> torch.Tensor:
    return current.run(aten.copy_.default, (target, source, *args), {})
