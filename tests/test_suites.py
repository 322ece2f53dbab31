"""torch's own tables of optimizer tests, ``torch.testing._internal.common_optimizers``, with our rules in the place of theirs.

``make suites`` runs it with all inputs; otherwise each check takes one in five. The checks are those of torch's
``test/test_optim.py``, of which the tables are installed with torch and the tests are not.
``python tests/test_suites.py`` writes docs/suites.md.
"""

import copy
import warnings

import pytest
import torch
from cases import ours
from conftest import ROOT
from helpers import EVERY, stored
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau

import hypergradient as hg
from hypergradient import SGD, Hyperoptimizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what only the compiler's tests need
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

INFOS = {info.name: info for info in optim_db if hasattr(hg, info.name)}
ABSENT = {
    "ASGD": "superseded by averages with weights: `SGDScheduleFree`",
    "Adafactor": "its state is not shaped like the parameter, and its step is relative to the parameter's size",
    "LBFGS": "a step is many evaluations of a closure",
    "Rprop": "the gradient's changes of sign set its step sizes, through which nothing can be derived",
    "SparseAdam": "sparse gradients are refused",
}
"""Optimizers of torch that have no rule here."""
PAGE = ROOT / "docs" / "suites.md"


# ----------------------------------------------------------------- what is shared


def mine(info, params, kwargs, above=None):
    options = ours(kwargs)
    maximize, rule = options.pop("maximize", False), getattr(hg, info.name)
    return Hyperoptimizer(params, rule(**options) if above is None else rule(**options) / above, maximize=maximize)


def still(info, params, kwargs):
    """The rule under another that moves nothing."""
    return mine(info, params, kwargs, SGD(lr=0.0))


def theirs(info, params, kwargs):
    return info.optim_cls(params, **kwargs)


MAKERS = (mine, still, theirs)


def inputs(info, tensor=False):
    """Those whose lr is a number, or those whose lr is a tensor."""
    return [i for i in info.optim_inputs_func("cpu") if isinstance(i.kwargs.get("lr"), torch.Tensor) == tensor]


class Problem:
    """A weight and, but for Muon, a bias: that of torch's tests."""

    def __init__(self, info, dtypes=(torch.float64, torch.float64), strided=False):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(10, 5, 2, dtype=dtypes[0], generator=generator)
        bias = torch.randn(10, 2, dtype=dtypes[1], generator=generator)
        self.x = torch.randn(5, dtype=dtypes[0], generator=generator)
        weight, bias = (x[..., 0] if strided else x[..., 0].contiguous() for x in (weight, bias))
        self.params = [Parameter(weight)] if info.name == "Muon" else [Parameter(weight), Parameter(bias)]

    def loss(self):
        y = self.params[0].mv(self.x)
        return sum((y + b).abs().square().sum() for b in self.params[1:]) if self.params[1:] else y.abs().square().sum()

    def closure(self):
        for p in self.params:
            p.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def go(self, optimizer, steps=5):
        for _ in range(steps):
            optimizer.step(self.closure)
        return self


def same(one, other, **tolerance):
    """Whether the parameters are."""
    torch.testing.assert_close(one.params, other.params, **tolerance)


def bits(one, other):
    same(one, other, rtol=0, atol=0)


# ----------------------------------------------------------------------- checks


def steps_of(info, kwargs, maker=mine, tolerance=None, steps=10, **how):
    """Compare `steps` steps with torch's."""
    one, other = Problem(info, **how), Problem(info, **how)
    one.go(maker(info, one.params, kwargs), steps)
    other.go(theirs(info, other.params, kwargs), steps)
    same(one, other, **(tolerance or {"rtol": 1e-9, "atol": 1e-10}))


def forloop_goes_right_direction(info, kwargs):
    """the weights of torch's optimizer after 10 steps in double precision, contiguous and not; the loss falls, or rises"""
    for strided in (False, True):
        steps_of(info, kwargs, strided=strided)
    problem = Problem(info)
    before = problem.loss()
    problem.go(mine(info, problem.params, kwargs), 20)
    assert (problem.loss() > before) == kwargs.get("maximize", False)


def under_a_tower(info, kwargs):
    """the same under another rule that moves nothing: no test of torch's"""
    steps_of(info, kwargs, still)


def single_precision(info, kwargs):
    """the weights of torch's optimizer in single precision, within the tolerance of `assert_close`"""
    steps_of(info, kwargs, tolerance={"rtol": None, "atol": None}, dtypes=(torch.float32, torch.float32))


def mixed_device_dtype(info, kwargs):
    """parameters of two precisions"""
    one, other = (Problem(info, (torch.float64, torch.float64)) for _ in range(2))
    for problem, make in ((one, mine), (other, theirs)):
        half = [Parameter(p.detach().float()) for p in problem.params]
        optimizer = make(info, [*problem.params, *half], kwargs)
        for _ in range(5):
            problem.closure()
            for p, q in zip(problem.params, half, strict=True):
                q.grad = p.grad.float()
            optimizer.step()
        problem.params += half
    assert [p.dtype for p in one.params] == [p.dtype for p in other.params]
    same(one, other)


def complex_parameters(info, kwargs):
    """parameters in complex numbers, where torch has them"""
    if info.supports_complex:
        steps_of(info, kwargs, dtypes=(torch.complex128, torch.complex128))


def param_groups(info, kwargs):
    """a group per parameter, with another lr, and with another weight decay"""
    for own in ({"lr": 0.01}, {"weight_decay": 0.3}):
        one, other = Problem(info), Problem(info)
        for problem, make in ((one, mine), (other, theirs)):
            groups = [{"params": [p], **(own if i else {})} for i, p in enumerate(reversed(problem.params))]
            problem.go(make(info, groups, kwargs))
        same(one, other, rtol=1e-9, atol=1e-10)


def forloop_goes_right_direction_with_lrsched(info, kwargs):
    """every combination of schedulers that torch's table has for the optimizer"""
    for makers in info.scheduler_inputs:
        one, other = Problem(info), Problem(info)
        for problem, make in ((one, mine), (other, theirs)):
            optimizer = make(info, problem.params, kwargs)
            schedulers = [make_scheduler(optimizer) for make_scheduler in makers]
            for _ in range(12):
                loss = optimizer.step(problem.closure)
                for scheduler in schedulers:
                    scheduler.step(loss.item()) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
        same(one, other, rtol=1e-9, atol=1e-10)


def step_is_noop_when_params_have_no_grad(info, kwargs):
    """without gradients, no parameter moves"""
    problem, before = Problem(info), Problem(info)
    optimizer = mine(info, problem.params, kwargs)
    for _ in range(3):
        optimizer.step()
    bits(problem, before)


def step_is_noop_for_zero_grads(info, kwargs):
    """with gradients of 0 and no weight decay, no parameter moves"""
    problem, before = Problem(info), Problem(info)
    optimizer = mine(info, problem.params, {**kwargs, "weight_decay": 0.0})
    for _ in range(3):
        for p in problem.params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    bits(problem, before)


def saved(info, kwargs, make=mine, edit=lambda content: content, named=(False, False)):
    """Five steps, a checkpoint that `edit` changes, and five more steps: of one that has loaded it, and of the first."""
    problem = Problem(info)

    def params(names, of):
        return [(f"p{i}", p) for i, p in enumerate(of.params)] if names else of.params

    first = make(info, params(named[0], problem), kwargs)
    problem.go(first)
    twin = Problem(info)
    twin.params = [Parameter(p.detach().clone()) for p in problem.params]
    again = mine(info, params(named[1], twin), kwargs)
    again.load_state_dict(edit(stored(first.state_dict())))
    return problem.go(first), twin.go(again), first, again


def state_dict_deterministic(info, kwargs):
    """through `torch.load(weights_only=True)`: the same bits, and the same state"""
    one, other, first, again = saved(info, kwargs)
    bits(one, other)
    said, heard = first.state_dict(), again.state_dict()
    torch.testing.assert_close(said["state"], heard["state"], rtol=0, atol=0, equal_nan=True)
    assert str(said["param_groups"]) == str(heard["param_groups"])


def can_load_older_state_dict(info, kwargs):
    """a checkpoint of before there were the flags `foreach`, `maximize`, …"""
    if kwargs.get("maximize"):
        return

    def older(content):
        groups = [{n: x for n, x in g.items() if n not in info.not_og_supported_flags} for g in content["param_groups"]]
        return {**content, "param_groups": groups}

    bits(*saved(info, kwargs, edit=older)[:2])


def load_nontensor_step(info, kwargs):
    """a checkpoint whose numbers of steps are numbers"""

    def plain(content):
        state = {k: {n: x.item() if n == "step" else x for n, x in s.items()} for k, s in content["state"].items()}
        return {**content, "state": state}

    bits(*saved(info, kwargs, edit=plain)[:2])


def checkpoint_of_torch(info, kwargs):
    """a checkpoint of torch's optimizer, gone on with: no test of torch's"""
    one, other, *_ = saved(info, kwargs, make=theirs)
    same(one, other, rtol=1e-9, atol=1e-10)


def can_load_from_to_named_state_dict(info, kwargs):
    """from named parameters to those without names, and back"""
    for named in ((True, False), (False, True), (True, True)):
        one, other, _, again = saved(info, kwargs, named=named)
        bits(one, other)
        assert ("param_names" in again.param_groups[0]) == (named[0] or named[1])


def deepcopy_copies_all_public_attrs(info, kwargs):
    """a copy has the public attributes, and makes the same step"""
    problem = Problem(info)
    optimizer = mine(info, problem.params, kwargs)
    problem.go(optimizer)
    twin, other = copy.deepcopy((problem, optimizer))
    assert {n for n in dir(optimizer) if not n.startswith("_")} == {n for n in dir(other) if not n.startswith("_")}
    bits(problem.go(optimizer), twin.go(other))


def optimizer_can_be_printed(info, kwargs):
    """`repr`, before and after a step; and of one that comes from a pickle's `__setstate__`"""
    problem = Problem(info)
    optimizer = mine(info, problem.params, kwargs)
    assert info.name in repr(optimizer)
    problem.go(optimizer)
    optimizer.__setstate__(optimizer.__getstate__())
    assert info.name in repr(optimizer)


def step_hooks(info, kwargs):
    """hooks before and after each step, and what is left of them when they are removed"""
    problem, seen = Problem(info), []
    optimizer = mine(info, problem.params, kwargs)
    before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    problem.go(optimizer, 2)
    before.remove()
    problem.go(optimizer, 1)
    after.remove()
    problem.go(optimizer, 1)
    assert seen == ["before", "after"] * 2 + ["after"]


def non_empty_state(info, kwargs):
    """there is state of each parameter after a step"""
    problem = Problem(info)
    optimizer = mine(info, problem.params, kwargs)
    problem.go(optimizer, 1)
    assert all(len(optimizer.state[p]) for p in problem.params)


CHECKS = [
    forloop_goes_right_direction,
    under_a_tower,
    single_precision,
    mixed_device_dtype,
    complex_parameters,
    param_groups,
    forloop_goes_right_direction_with_lrsched,
    step_is_noop_when_params_have_no_grad,
    step_is_noop_for_zero_grads,
    state_dict_deterministic,
    can_load_older_state_dict,
    load_nontensor_step,
    checkpoint_of_torch,
    can_load_from_to_named_state_dict,
    deepcopy_copies_all_public_attrs,
    optimizer_can_be_printed,
    step_hooks,
    non_empty_state,
]


pytestmark = pytest.mark.usefixtures("exact_muon")  # see DIFFERENCES


@pytest.mark.parametrize("name", INFOS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_of_torch(check, name):
    every = inputs(INFOS[name])
    for given in every[CHECKS.index(check) % EVERY :: EVERY] or every[:1]:
        try:
            check(INFOS[name], given.kwargs)
        except Exception as e:
            e.add_note(f"{name}, {given.desc}: {given.kwargs}") if hasattr(e, "add_note") else None
            raise


# -------------------------------------------------------------- errors, and refusals


def refused(info, wrong):
    """The type and the message of what an input that is wrong raises here, with warnings as errors; None."""
    given = wrong.optimizer_error_input
    params = [Parameter(torch.ones(2, 3))] if given.params is None else given.params
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = mine(info, params, given.kwargs)
            if wrong.error_on == OptimizerErrorEnum.STEP_ERROR:
                optimizer.step()
    except (ValueError, TypeError, RuntimeError, Warning) as e:
        return type(e), str(e)
    return None, ""


OTHERWISE = {
    "lr as Tensor doesn't work with foreach & not capturable": (TypeError, "has no argument 'foreach'"),
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": (TypeError, "has no argument 'foreach'"),
    "only support 2D parameters": (None, ""),  # that of torch's table is frozen
    "does not support complex parameters": (ValueError, "Muon moves real matrices only"),
}
"""Of torch's wrong inputs, those that raise something else here."""


@pytest.mark.parametrize("name", INFOS)
def test_wrong_inputs_raise_the_same_error(name):
    info = INFOS[name]
    for wrong in info.optim_error_inputs_func("cpu", torch.float32):
        kind, message = refused(info, wrong)
        expected, words = OTHERWISE.get(wrong.optimizer_error_input.desc, (wrong.error_type, ""))
        assert kind is expected, wrong.optimizer_error_input.desc
        assert words in message


def test_muon_refuses_what_is_no_matrix_where_it_is_trained():
    with pytest.raises(ValueError, match="real matrices only"):
        Hyperoptimizer([Parameter(torch.ones(2, 3, 4))], hg.Muon())


@pytest.mark.parametrize("name", INFOS)
def test_a_tensor_as_lr_is_refused(name):
    for given in inputs(INFOS[name], tensor=True):
        with pytest.raises(ValueError, match="write a number"):
            mine(INFOS[name], Problem(INFOS[name]).params, given.kwargs)


@pytest.mark.parametrize("name", INFOS)
def test_flags_that_choose_an_implementation_are_refused(name):
    for flag in INFOS[name].supported_impls:
        with pytest.raises(TypeError, match=f"has no argument '{flag}'"):
            mine(INFOS[name], Problem(INFOS[name]).params, {flag: True})


@pytest.mark.parametrize("name", [n for n, info in INFOS.items() if info.supports_sparse])
def test_sparse_gradients_are_refused_before_anything_moves(name):
    options, _ = INFOS[name].metadata_for_sparse
    problem, before = Problem(INFOS[name]), Problem(INFOS[name])
    optimizer = mine(INFOS[name], problem.params, options)
    problem.closure()
    problem.params[0].grad = problem.params[0].grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    bits(problem, before)


# ------------------------------------------------------------------------- the page

DIFFERENCES = [
    (
        "Muon",
        "values of all steps",
        "torch rounds its iterations to bfloat16; here they run in the dtype of the parameter, for a derivative passes through "
        "them. The checks compare with torch's without that rounding.",
    ),
    (
        "{tensor}",
        "`lr=torch.tensor(…)`",
        'ValueError: it would be read once. What is learned is a tensor already; a new value is written to `group["lr"]`.',
    ),
    ("{impls}", "`foreach`, `fused`, `differentiable`", "TypeError: there is one implementation."),
    ("Adam, AdamW", "two wrong inputs with `foreach=True`", "TypeError instead of ValueError, for the same reason."),
    ("{sparse}", "sparse gradients", "RuntimeError before anything moves: a hypergradient would make them dense."),
    (
        "Muon",
        "a parameter that is frozen and no matrix",
        "taken: frozen parameters may be of any kind. Trained, it is refused.",
    ),
    (
        "Muon",
        "complex parameters",
        "ValueError instead of RuntimeError, and at construction already where the parameter is trained.",
    ),
    (
        "all",
        "the words of errors",
        "ours name the rule, the argument, its value and what is allowed. The types are torch's, but for those above.",
    ),
]
"""Rules, what differs on purpose, and how and why."""
LEFT_OUT = {
    "cuda, mps, xpu, several devices, capturable, graphs, fused kernels": "there is no such device where it runs",
    "foreach and fused against the loop, differentiable, peak memory of foreach": "there is one implementation",
    "the sparse inputs": "refused, see above",
    "`defaults_changed_to_foreach`, names and files of modules": "they are about torch's own sources",
}
"""Tests of torch that have no counterpart here, and why."""


def page():
    """The text of docs/suites.md."""
    names = {
        "{tensor}": [n for n, i in INFOS.items() if inputs(i, tensor=True)],
        "{impls}": [n for n, i in INFOS.items() if i.supported_impls],
        "{sparse}": [n for n, i in INFOS.items() if i.supports_sparse],
    }
    counts = [len(inputs(info)) for info in INFOS.values()]
    wrong = [len(info.optim_error_inputs_func("cpu", torch.float32)) for info in INFOS.values()]
    lines = [
        "# torch's own optimizer tests",
        "",
        "Tables of inputs for optimizers are installed with torch, in `torch.testing._internal.common_optimizers`. "
        f"`make suites` puts our rules in the place of torch's {len(optim_db)} optimizers: {len(INFOS)} have a rule of that "
        f"name here, with {sum(counts)} inputs that are right and {sum(wrong)} that are wrong. The checks are those of torch's "
        "`test_optim.py`, which is not installed, written anew around a rule alone, `Hyperoptimizer(params, Adam())`. Nothing "
        "is fetched, and every change is tested with a fifth of each table. This page is made by "
        f"`python tests/test_suites.py`; torch {torch.__version__.partition('+')[0]}, CPU.",
        "",
        "## What passes",
        "",
        f"Every check, on every input of {', '.join(INFOS)}:",
        "",
        "| check | what is compared |",
        "|---|---|",
        *(f"| {check.__name__.replace('_', ' ')} | {check.__doc__} |" for check in CHECKS),
        f"| errors | of {sum(wrong)} wrong inputs, the type of the error; see below |",
        "",
        "| rule | inputs | wrong inputs |",
        "|---|---|---|",
        *(f"| {name} | {n} | {m} |" for name, n, m in zip(INFOS, counts, wrong, strict=True)),
        "",
        "## What differs on purpose",
        "",
        "| rule | what | how and why |",
        "|---|---|---|",
        *(f"| {', '.join(names.get(who, [who]))} | {what} | {why} |" for who, what, why in DIFFERENCES),
        "",
        "## What is not here",
        "",
        "| optimizer of torch | why there is no such rule |",
        "|---|---|",
        *(f"| {name} | {why} |" for name, why in ABSENT.items()),
        "",
        "| tests of torch | why they are left out |",
        "|---|---|",
        *(f"| {what} | {why} |" for what, why in LEFT_OUT.items()),
        "",
    ]
    return "\n".join(lines)


def test_every_optimizer_of_torch_is_tested_or_named():
    assert {info.name for info in optim_db} == {*INFOS, *ABSENT}


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the tables of another torch")
def test_the_page_says_what_is_tested():
    assert PAGE.read_text() == page(), "python tests/test_suites.py writes it"


if __name__ == "__main__":
    PAGE.write_text(page())
