"""Train for two epochs in each process that torchrun started, on its GPU, and print the losses.

`torchrun --nproc-per-node=2 tests/two_gpus.py`; where there are fewer GPUs, on stand-ins.
"""

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from medood import processes
from medood.models.network import pick_device
from tests import standin
from tests.gpus import SMALL, trained


@contextlib.contextmanager
def started():
    """The device of this process, and what joins it to the others."""
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        with processes.joined():
            yield pick_device(SMALL.device)
        return
    with standin.started(standin.Standin()) as device:
        dist.init_process_group(f"cpu:gloo,{standin.NAME}:gloo")
        processes._joined = True
        yield device.device
        dist.destroy_process_group()


with started() as device:
    _, found = trained(replace(SMALL, device="auto", sync_batch_norm=True), device)
    if processes.is_main():
        print(json.dumps(found.tolist()), flush=True)
