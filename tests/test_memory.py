"""What a step leaves behind, and what it may not do."""

import copy
import gc
import platform
import subprocess
import sys
import weakref
from itertools import product

import pytest
import torch
from cases import parameters, train
from helpers import HEIGHT_3, TOWER, NoHostSynchronization, crossed, scalars, tensors

from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, Muon
from hypergradient.group import ALONE, BUCKET


def test_two_thousand_steps_leave_nothing_behind():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, HEIGHT_3)
    train(optimizer, mine, 100)
    before = tensors()
    train(optimizer, mine, 2000)
    assert tensors() == before


def pushed(optimizer, steps=1):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = p.detach().cos()
        optimizer.step()


def everything_goes(optimizers):
    optimizers.clear()


def a_group_goes(optimizers):
    for p in optimizers[0].param_groups.pop(0)["params"]:
        del optimizers[0].state[p]
    optimizers[0].add_param_group({"params": [torch.ones(3, requires_grad=True)]})
    pushed(optimizers[0])


def parameters_go(optimizers):
    group = optimizers[0].param_groups[0]
    for p in group["params"]:
        del optimizers[0].state[p]
    group["params"] = [torch.ones(3, requires_grad=True)]
    pushed(optimizers[0])


@pytest.fixture
def no_collector():
    pushed(Hyperoptimizer([torch.ones(400, 400, requires_grad=True)]), 3)  # the first of all in a process imports a lot
    gc.collect()
    gc.disable()
    yield
    gc.enable()


GOES = {f.__name__: f for f in (everything_goes, a_group_goes, parameters_go)}
TUNED = [*product([None, TOWER, SGD(lr=1e-3, momentum=0.9)], ["group", "tensor"])]


@pytest.mark.parametrize(("let_go", "how"), crossed(GOES, TUNED), ids=str)
def test_parameters_and_state_that_are_let_go_of_are_freed_at_once(let_go, how, no_collector):
    """As with torch.optim, without a collection: a device that is full does not ask for one."""
    tower, per = how
    groups = [[torch.ones(n, n, requires_grad=True) for n in sizes] for sizes in ((400, 5, 6), (4,))]
    optimizers = [Hyperoptimizer([{"params": params} for params in groups], tower, per=per)]
    pushed(optimizers[0], 3)
    known = [*groups[0], *(x for p in groups[0] for x in optimizers[0].state[p].values())]
    known = [weakref.ref(x) for x in known]
    del groups
    GOES[let_go](optimizers)
    assert not [x() for x in known if x() is not None]


@pytest.mark.parametrize("again", [False, True], ids=["cleared", "loaded"])
def test_state_that_is_replaced_is_freed_at_once(again, no_collector):
    params = [torch.ones(n, n, requires_grad=True) for n in (400, 5)]
    optimizer = Hyperoptimizer(params)
    pushed(optimizer, 3)
    known = [weakref.ref(x) for p in params for x in optimizer.state[p].values()]
    if again:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.state.update({} if again else {p: {} for p in params})
    pushed(optimizer)
    assert not [x() for x in known if x() is not None]


FAULTS = """
import resource, torch
from hypergradient import SGD, Adam, Hyperoptimizer
p = torch.randn(100_000, requires_grad=True)
p.grad = torch.randn(100_000)
optimizer = Hyperoptimizer([p], Adam(lr=1e-3) / SGD(lr=1e-5))
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator only it is known")
def test_a_step_finds_its_memory_where_it_left_it():
    """In a fresh process, for what has been freed before decides what the allocator gives back to the system."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 20 * 50  # of 100 pages each a temporary has; without the precaution it is 600 a step


@pytest.mark.usefixtures("without_tapes")
@pytest.mark.parametrize("per", ["all", "tensor"])
@pytest.mark.parametrize(
    "tower",
    [
        HEIGHT_3,
        Adam(lr=0.01, tune="lr", charts={"lr": POSITIVE}, horizon=9, normalize="cosine") / SGD(lr=0.1),
        Muon() / SGD(lr=1e-5),
    ],
    ids=repr,
)
def test_a_step_does_not_wait_for_the_device(tower, per):
    mine = parameters(matrix=not tower.rules[0].elementwise)
    optimizer = Hyperoptimizer(mine, tower, per=per)
    train(optimizer, mine, 3)
    optimizer.param_groups[0]["lr"] *= 0.9
    with NoHostSynchronization():
        optimizer.step()
    with pytest.raises(AssertionError), NoHostSynchronization():
        mine[0].sum().item()


PARTS = {
    "lr alone: what Adam itself remembers": (Adam(tune="lr") / SGD(lr=1e-5), set()),
    "AdamW, lr and decay": (AdamW(tune=("lr", "weight_decay")) / SGD(lr=1e-5), set()),
    "betas: the last gradient": (Adam() / SGD(lr=1e-5), {"last_gradient"}),
    "a horizon: a sensitivity each": (Adam(horizon=9) / SGD(lr=1e-5), {"last_lr", "last_beta1", "last_beta2"}),
    "no tower": (Adam(), set()),
}


@pytest.mark.parametrize(("tower", "more"), PARTS.values(), ids=PARTS.keys())
def test_nothing_is_kept_that_can_be_recovered(tower, more):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, tower)
    train(optimizer, mine, 3)
    for p in mine[1:3]:
        assert {n for n, x in optimizer.state[p].items() if x.shape == p.shape} == {"exp_avg", "exp_avg_sq"} | more


@pytest.mark.parametrize(("per", "bound"), [("group", BUCKET), ("tensor", ALONE)])
def test_small_parameters_are_gathered_but_not_all_of_them_in_one_place(per, bound):
    """A step works on a copy of what is gathered, and a checkpoint of one parameter holds the memory of all beside it."""
    large, *mine = scalars(ALONE, *[ALONE // 3] * 30, dtype=torch.float32)
    optimizer = Hyperoptimizer([large, *mine], SGD(lr=0.1, momentum=0.9, tune=("lr",)) / SGD(lr=1e-9), per=per)
    optimizer.step()
    places = {x.data_ptr(): x.nbytes() for x in (optimizer.state[p]["momentum_buffer"].untyped_storage() for p in mine)}
    assert 1 < len(places) < len(mine)
    assert max(places.values()) <= 4 * (bound + ALONE)
    assert optimizer.state[large]["momentum_buffer"].untyped_storage().nbytes() == 4 * ALONE
