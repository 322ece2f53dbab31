"""What the processes of the tests do. They are real ones, joined by torch.distributed over gloo on this machine."""

from __future__ import annotations

import copy
import faulthandler
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import RULES
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

from hypergradient import POSITIVE, SGD, Adam, AdamW, AdamWScheduleFree, Hyperoptimizer, Muon, Rule, Tower, auto

OPEN = {"charts": {"lr": POSITIVE}, "horizon": 20.5, "normalize": "cosine"}
COSINE = Adam(lr=1e-3, tune="lr", **OPEN) / SGD(lr=0.2)
TALL = Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=1e-5)
Plan = tuple[Tower, str, dict[int, Rule]]
PLANS: dict[str, Plan] = {  # tower, per, and the rules of groups that have their own: by the dimensions of their parameters
    "tall": (TALL, "group", {}),
    "cosine": (COSINE, "all", {}),
    "a set per tensor": (SGD(lr=0.1, momentum=0.5, **OPEN) / SGD(lr=0.2) / SGD(lr=1e-3), "tensor", {}),
    "two groups": (TALL, "group", {1: AdamW(lr=1e-3)}),
    "the default": (auto(AdamWScheduleFree(lr=1e-3)), "group", {1: AdamW(lr=1e-3)}),
    "Muon": (AdamW(lr=0.01, horizon=5) / SGD(lr=1e-3), "group", {2: Muon(lr=0.02, horizon=5)}),
}
SAMPLED: dict[str, Plan] = {
    "the default": (replace(auto(AdamWScheduleFree(lr=1e-3)).rules[0], sample=2) / SGD(lr=0.5), "all", {}),
    "exact": (Adam(lr=0.01, sample=2) / SGD(lr=1e-3), "group", {}),
}
"""Plans in which matrices are read in samples; see `sampling`."""
EVERY_RULE: dict[str, Plan] = {
    str(c): (c.rule(**c.lively) / SGD(lr=1e-3), "group", {1: SGD(lr=0.1)} if c.matrix else {}) for c in RULES
}
SAME = {"rtol": 1e-8, "atol": 1e-11, "equal_nan": True}
"""Options of `assert_close`: but for the order of sums."""


# ------------------------------------------------------------------- processes


def launch(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each of `ranks` processes that can talk to each other."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_rank, (ranks, folder, function, args), ranks, start_method=context())
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(ranks)]


def context() -> str:
    """How processes are started: each is a fork of one that has imported torch and done nothing."""
    modules = ["_dynamo", "distributed.fsdp", "distributed.tensor.parallel", "distributed.checkpoint.state_dict"]
    multiprocessing.set_forkserver_preload([f"torch.{m}" for m in modules])
    return "forkserver"


def _rank(rank: int, ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    strict()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    result = function(*args)
    dist.barrier()
    dist.destroy_process_group()
    torch.save(result, Path(folder) / str(rank))


def strict() -> None:
    """The settings of the test suite, which a new process does not have."""
    faulthandler.enable()  # a crash says where
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")


# -------------------------------------------------------------------- problems


def network() -> nn.Sequential:
    """Over 4 processes, 5 rows are 2 + 2 + 1 + 0, and one row is 1 + 0 + 0 + 0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


class Run:
    """A model and its optimizer, `how` they are spread over the processes, and the data they see.

    Args:
        how: "alone"; "ddp", "zero"; "sharded", "hybrid" (FSDP2 on a mesh of one and of two dimensions); "replicated"
            (DTensors, the batch sharded); "tensor parallel"; "2d" (FSDP2 of a tensor-parallel model).
        late: the optimizer is made before the model is spread.
    """

    def __init__(self, how: str, plan: Plan, late: bool = False, dtype: torch.dtype = torch.float64) -> None:
        self.how, self.steps, self.dtype = how, 0, dtype
        self.model = self.called = network().to(dtype)
        self.optimizer = make(self.model, plan) if late else None
        groups = self.optimizer.param_groups if late else ()
        names = [[n for p in g["params"] for n, q in self.model.named_parameters() if p is q] for g in groups]
        self._spread(1 if how == "alone" else dist.get_world_size())
        for group, mine in zip(groups, names, strict=True):
            group["params"] = [dict(self.model.named_parameters())[n] for n in mine]
        if how == "zero":
            with warnings.catch_warnings():  # of torch, about itself
                warnings.filterwarnings("ignore", "`torch.jit.[a-z]+` is ", DeprecationWarning)
                from torch.distributed.optim import ZeroRedundancyOptimizer
            tower, per, _ = plan
            self.optimizer = ZeroRedundancyOptimizer(self.model.parameters(), Hyperoptimizer, tower=tower, per=per)
        self.optimizer = self.optimizer or make(self.model, plan)

    def _spread(self, ranks: int) -> None:
        model, self.parts = self.model, 1 if self.how in ("alone", "replicated", "tensor parallel") else ranks
        self.part = dist.get_rank() if self.parts > 1 else 0
        if self.how in ("ddp", "zero"):
            self.called = nn.parallel.DistributedDataParallel(model)
        elif self.how == "replicated":
            self.mesh = init_device_mesh("cpu", (ranks,))
            distribute_module(model, self.mesh)
        elif self.how in ("tensor parallel", "2d"):
            shape = (ranks // 2, 2) if self.how == "2d" else (1, ranks)
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
            parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            if self.how == "2d":
                fully_shard(model, mesh=mesh["data"])
                self.parts, self.part = ranks // 2, dist.get_rank() // 2
        elif self.how in ("sharded", "hybrid"):
            hybrid = self.how == "hybrid"
            shape, names = ((2, ranks // 2), ("replicas", "shards")) if hybrid else ((ranks,), ("shards",))
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=mesh)

    def backward(self) -> None:
        """The gradients of the next step: those of the mean over the same batch, however it is spread."""
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(self.steps)).to(self.dtype)
        if self.how == "replicated":
            x = distribute_tensor(x, self.mesh, [Shard(0)])
        x = x.chunk(self.parts)[self.part] if self.parts > 1 else x
        y = 3 * x.sum(1, keepdim=True)
        (self.called(x) - (y / (1 + y * y))).square().mean().backward()

    def go(self, steps: int) -> Run:
        """So many steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.backward()
            self.optimizer.step()
            self.steps += 1
        return self

    def result(self) -> dict[str, Any]:
        """What has been learned: the whole of it, in whichever process it is."""
        optimizer = self.optimizer.optim if self.how == "zero" else self.optimizer
        groups = range(len(optimizer.param_groups))
        names = {p: n for n, p in self.model.named_parameters()}
        return {
            "weights": {n: whole(p.detach()) for n, p in self.model.named_parameters()},
            "hyperparameters": [optimizer.hyperparameters(g) for g in groups],
            "hypergradients": [optimizer.hypergradients(g) for g in groups],
            "steps": self.steps,
            "state": {names[p]: whole(memory) for p, memory in optimizer.state.items()},
        }


def make(model: nn.Module, plan: Plan, compile: bool = False) -> Hyperoptimizer:
    tower, per, rules = plan
    groups = [{"params": [p for p in model.parameters() if p.ndim not in rules]}]
    groups += [{"params": [p for p in model.parameters() if p.ndim == n], "rule": rule} for n, rule in rules.items()]
    return Hyperoptimizer(groups, tower, per=per, compile=compile)


def whole(x: Any) -> Any:
    """Copies of tensors in dicts, with all their shards. (`full_tensor` sometimes ends a process, in torch's `wait_tensor`.)"""
    if isinstance(x, dict):
        return {n: whole(v) for n, v in x.items()}
    if not isinstance(x, DTensor):
        return x.clone()
    _, begins = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (begins, x.to_local()))
    full = torch.full(x.shape, torch.nan, dtype=x.dtype)
    for begins, part in parts:
        full[tuple(slice(i, i + n) for i, n in zip(begins, part.shape, strict=True))] = part
    return full


def assert_same(mine: dict[str, Any], theirs: dict[str, Any], options: dict[str, Any] = SAME) -> None:
    """Of each plan: weights, hyperparameters and hypergradients of all levels, and every tensor of the state."""
    for name in mine.keys() | theirs.keys():
        for what in mine[name]:
            torch.testing.assert_close(
                mine[name][what], theirs[name][what], **options, msg=lambda m, n=name, w=what: f"{n}, {w}: {m}"
            )


def trained(how: str, plans: dict[str, Plan], steps: int, late: bool = False) -> dict[str, Any]:
    return {name: Run(how, plan, late).go(steps).result() for name, plan in plans.items()}


def sampling(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` where 20 elements are as many as `sample.LARGE` is, and 4 are enough: so rows are left out."""
    with patch("hypergradient.sample.LARGE", 20), patch("hypergradient.sample.ENOUGH", 4):
        return function(*args)


def cut_twice(sharded: bool) -> tuple[float, int]:
    """The lr after a training in which both tensor parallelism and FSDP2 have cut the rows, and how much is kept of a row."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 11, bias=False), nn.Tanh())
    if sharded:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(output_layouts=Replicate())})
        fully_shard(model, mesh=mesh["data"])
    optimizer, chance = Hyperoptimizer(model.parameters()), torch.Generator().manual_seed(1)
    for _ in range(8):
        optimizer.zero_grad()
        (model(torch.randn(8, 64, generator=chance)) - 1).square().mean().backward()
        optimizer.step()
    return optimizer.hyperparameters()[0]["lr"], optimizer.state[model[0].weight]["last_movement"].shape[1]


def evaluated(how: str, plan: Plan) -> list[dict[str, Any]]:
    """What is known in evaluation, and back in training a step later."""
    run = Run(how, plan).go(4)
    run.optimizer.eval()
    found = [run.result()]
    run.optimizer.train()
    return [*found, run.go(1).result()]


def halved_in_place(how: str, plan: Plan) -> list[dict[str, Any]]:
    """A run in which somebody halves averages, and one that goes on from a copy in memory of what it was before that."""
    run = Run(how, plan).go(3)
    copied = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    weight, bias, *_ = run.optimizer.param_groups[0]["params"]
    run.optimizer.state[weight]["exp_avg"].mul_(0.5)
    found = [run.go(2).result()]
    for x in (run.optimizer.state[bias][n] for n in ("exp_avg", "exp_avg_sq")):
        (x.to_local() if isinstance(x, DTensor) else x).mul_(0.5)
    found += [run.go(2).result()]
    run.model.load_state_dict(copied[0])
    run.optimizer.load_state_dict(copied[1])
    return [*found, run.go(2).result()]


def looked_at(sharded: bool) -> tuple[float, ...]:
    """Outputs at the average and in training, after a training with passes in evaluation and none backward. Of a model whose
    root has parameters of its own, which FSDP2 keeps gathered after such a pass.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    if sharded:
        fully_shard(model)
    optimizer, chance = Hyperoptimizer(model.parameters()), torch.Generator().manual_seed(1)
    for t in range(12):
        x = torch.randn(8, 6, generator=chance)
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        if t < 2:  # before the first step, too
            optimizer.eval()
            with torch.no_grad():
                model(x)
            optimizer.train()
        optimizer.step()
        if t % 4 == 3:
            with torch.no_grad():
                outputs = [model(x).sum().item()]
                optimizer.eval()
                outputs.append(model(x).sum().item())
                optimizer.train()
                outputs.append(model(x).sum().item())
    return *outputs, optimizer.hyperparameters()[0]["lr"]


# ----------------------------------------------------------------- what is sent


class Collectives(TorchDispatchMode):
    """Records what is sent: the name of each collective operation and how many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        if func.namespace in ("c10d", "_c10d_functional", "c10d_functional"):
            tensors = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)]
            self.sent.append((func.__name__.split(".")[0], sum(x.numel() for x in tensors)))
        return func(*args, **(kwargs or {}))


def sent(how: str, plans: dict[str, Plan]) -> dict[str, list[list[tuple[str, int]]]]:
    """What each of three steps sends."""
    found: dict[str, list[list[tuple[str, int]]]] = {}
    for name, plan in plans.items():
        run = Run(how, plan)
        for _ in range(3):
            run.optimizer.zero_grad()
            run.backward()
            with Collectives() as collectives:
                run.optimizer.step()
            found.setdefault(name, []).append(collectives.sent)
    return found


def kinds(how: str, plan: Plan) -> dict[str, dict[str, Any]]:
    """By parameter, of what each tensor of its state is: its class, and its shape and placements."""
    run, found = Run(how, plan).go(2), {}
    for n, p in run.model.named_parameters():
        memory = run.optimizer.state[p]
        small = [n for n in memory if n.startswith("level ") or n in ("step", "numbers")]
        moved = [x for n, x in memory.items() if n not in small]
        found[n] = {
            "moved": [type(x).__name__ for x in moved],
            "alike": all(x.shape == p.shape and getattr(x, "placements", 0) == getattr(p, "placements", 0) for x in moved),
            "tower": [type(memory[n]).__name__ for n in small],
            "here": (p.to_local() if isinstance(p, DTensor) else p).numel(),
        }
    return found


# ------------------------------------------------------------------ what may go wrong


def poisoned(how: str, plan: Plan) -> list[dict[str, Any]]:
    """A NaN in the gradient of a single process: what was known before it and after it."""
    run = Run(how, plan).go(3)
    before = run.result()
    run.optimizer.zero_grad()
    run.backward()
    if dist.get_rank() == 0:
        next(run.model.parameters()).grad.to_local().view(-1)[0] = torch.nan
    run.optimizer.step()
    return [before, run.result()]


def warmed_up(how: str, plan: Plan) -> dict[str, Any]:
    """A schedule that starts at 0, and so a first step that moves nothing but counts; of the last layer alone."""
    run = Run(how, plan)
    run.optimizer = make(run.model[4], plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda t: min(t / 3, 1.0))
    for _ in range(5):
        run.go(1)
        schedule.step()
    return run.result()


def compiled(how: str, plan: Plan, compile: bool = True) -> dict[str, Any]:
    """The last layer alone: a single bucket, of which one process may hold nothing."""
    run = Run(how, plan)
    run.optimizer = make(run.model[4], plan, compile)
    with warnings.catch_warnings():  # of the compiler of torch, about torch
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        return run.go(4).result()


def sparing(how: str, plan: Plan) -> dict[str, Any]:
    """Parameters that come and go: the biases move in every other step only, the first weight from the third on."""
    run = Run(how, plan)
    for t in range(6):
        rest(run, t)
    return run.result()


def rest(run: Run, t: int) -> None:
    run.optimizer.zero_grad()
    run.backward()
    for n, p in run.model.named_parameters():
        if (n.endswith("bias") and t % 2) or (n == "0.weight" and t < 2):
            p.grad = None
    run.optimizer.step()
    run.steps += 1


# ------------------------------------------------------------------ checkpoints

OPTIONS = {
    "nested": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


def save(run: Run, folder: str, form: str) -> Run:
    """All of a run, on disk."""
    options = OPTIONS[form]
    state = {
        "model": get_model_state_dict(run.model, options=options),
        "optimizer": get_optimizer_state_dict(run.model, run.optimizer, options=options),
        "steps": run.steps,
    }
    if form != "full":
        dcp.save(state, checkpoint_id=folder)
    elif dist.get_rank() == 0:
        torch.save(state, folder)
    dist.barrier()
    return run


def load(run: Run, folder: str, form: str) -> Run:
    """`run` as it was saved, whatever it is now, and in however many processes it was then."""
    options = OPTIONS[form]
    with torch.no_grad():
        for p in run.model.parameters():
            p.mul_(2)
    if form == "full":
        state = torch.load(folder, weights_only=True)
    else:
        state = {
            "model": get_model_state_dict(run.model, options=options),
            "optimizer": get_optimizer_state_dict(run.model, run.optimizer, options=options),
            "steps": 0,
        }
        dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(run.model, state["model"], options=options)
    set_optimizer_state_dict(run.model, run.optimizer, state["optimizer"], options=options)
    run.steps = state["steps"]
    return run


def saved(how: str, plans: dict[str, Plan], folder: str, form: str, steps: int) -> list[dict[str, Any]]:
    """What is known after `steps` steps, when a checkpoint is made, and at the end of a run that goes on."""
    runs = {n: save(Run(how, plan).go(steps), f"{folder}/{n}", form) for n, plan in plans.items()}
    return [{n: run.go(more).result() for n, run in runs.items()} for more in (0, 4)]


def resumed(how: str, plans: dict[str, Plan], folder: str, form: str, looked_at: bool = False) -> list[dict[str, Any]]:
    """The same of runs that are loaded from those checkpoints, into optimizers that may have been looked at before."""
    runs = {n: Run(how, plan) for n, plan in plans.items()}
    for n, run in runs.items():
        if looked_at:
            assert f"{run.optimizer.hyperparameters()[0]['lr']}" in repr(run.optimizer)
        load(run, f"{folder}/{n}", form)
    return [{n: run.go(more).result() for n, run in runs.items()} for more in (0, 4)]


def disturbed(how: str, plans: dict[str, Plan], folder: str, form: str) -> dict[str, list[dict[str, Any]]]:
    """A run without a checkpoint, one that was saved before its first step, and one that was loaded from there."""
    found = {}
    for n, plan in plans.items():
        runs = Run(how, plan), save(Run(how, plan), f"{folder}/{n}", form), load(Run(how, plan), f"{folder}/{n}", form)
        found[n] = [run.go(4).result() for run in runs]
    return found


def halved(how: str, plan: Plan, folder: str, form: str) -> list[dict[str, Any]]:
    """A run with parameters of half precision, and its continuation from a checkpoint."""
    run = save(Run(how, plan, dtype=torch.bfloat16).go(4), folder, form)
    other = load(Run(how, plan, dtype=torch.bfloat16), folder, form)
    return [x.go(4).result() for x in (run, other)]


def consolidated(plan: Plan) -> list[dict[str, Any]]:
    """A run under ZeroRedundancyOptimizer, and one that has loaded its state_dict, which was gathered on rank 0."""
    run, other = Run("zero", plan).go(4), Run("zero", plan)
    run.optimizer.consolidate_state_dict(to=0)
    box = [copy.deepcopy(run.optimizer.state_dict()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, 0)
    other.model.load_state_dict(run.model.state_dict())
    other.optimizer.load_state_dict(box[0])
    other.steps = run.steps
    found = [x.result() for x in (run, other)]
    other.go(4)
    return found


def came_and_went(how: str, plan: Plan, folder: str, form: str) -> list[dict[str, Any]]:
    """A run whose parameters have made different numbers of steps, and its continuation from a checkpoint."""
    runs = [Run(how, plan)]
    for t in range(10):
        if t == 5:
            save(runs[0], folder, form)
            runs.append(load(Run(how, plan), folder, form))
        for run in runs:
            rest(run, t)
    return [run.result() for run in runs]


# ------------------------------------------------------------------ sudden death


def endure(folder: str, plan: Plan, steps: int, progress: Any) -> None:
    """Train up to a number of steps, from the last checkpoint on if there is one; a checkpoint in each step."""
    strict()
    run, file = Run("alone", plan), Path(folder) / "last"
    if file.exists():
        last = torch.load(file, weights_only=True)
        run.model.load_state_dict(last["model"])
        run.optimizer.load_state_dict(last["optimizer"])
        run.steps = last["steps"]
    while run.steps < steps:
        run.go(1)
        now = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "steps": run.steps}
        torch.save(now, file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
        progress.send(run.steps)
    torch.save(run.result(), Path(folder) / "end")
