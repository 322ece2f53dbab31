"""FSDP2: parameters sharded over processes.

    torchrun --standalone --nproc-per-node 2 -m examples.start.with_fsdp2

On CPUs it talks over gloo; on GPUs it would be nccl and a device for each process.
"""

import gc

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from hypergradient import Hyperoptimizer


def main() -> str:
    """What process 0 has learned."""
    torch.manual_seed(0)  # the same weights everywhere
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = Hyperoptimizer(model.parameters())  # after fully_shard

    torch.manual_seed(dist.get_rank())  # other data in each process
    for _ in range(100):
        x = torch.randn(16, 20)
        optimizer.zero_grad()
        cross_entropy(model(x), (x.sum(1) > 0).long()).backward()
        optimizer.step()
    return repr(optimizer)  # the same in all processes


if __name__ == "__main__":
    dist.init_process_group("gloo")  # rank and size are those that torchrun has set
    learned = main()
    if dist.get_rank() == 0:
        print(learned)
    dist.destroy_process_group()
    gc.collect()  # gloo's threads let go of Python's objects: else one may abort at exit (pytorch 179291)
