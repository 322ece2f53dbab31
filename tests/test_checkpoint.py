"""Distributed checkpoints resume what they have saved, on as many processes or others; and processes that are killed.

Rows 22 and 23 of the contract of an optimizer of torch.
"""

import contextlib
import multiprocessing
import random
import signal
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
import workers
from helpers import EVERY, EXACT, crossed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from workers import PLANS, SAME, SAMPLED, assert_same, context, launch

from hypergradient import SGD, Adam, AdamW, Hyperoptimizer

FORMS = ["nested", "flattened", "full"]
SOME = {name: PLANS[name] for name in ("a set per tensor", "the default", "Muon")}


@pytest.mark.parametrize("form", FORMS[::EVERY])
def test_dcp_flattening_resumes_on_two_ranks_to_the_last_bit(form, tmp_path):
    before = launch(workers.saved, 2, "sharded", SOME, str(tmp_path), form, 4)
    after = launch(workers.resumed, 2, "sharded", SOME, str(tmp_path), form)
    for mine, theirs in zip(after, before, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b, EXACT)


@pytest.mark.parametrize(("form", "ways"), crossed(FORMS, [[("sharded", 2), ("alone", 1)], [("alone", 1), ("sharded", 2)]]))
def test_dcp_flattening_resumes_on_other_numbers_of_ranks(form, ways, tmp_path):
    (how, ranks), (later, others) = ways
    (at, end), *_ = launch(workers.saved, ranks, how, SOME, str(tmp_path), form, 4)
    for loaded, gone_on in launch(workers.resumed, others, later, SOME, str(tmp_path), form):
        assert_same(loaded, at, EXACT)
        assert_same(gone_on, end, SAME)


def test_dcp_a_sample_is_resumed_on_other_numbers_of_ranks(tmp_path):
    (at, end), *_ = launch(workers.sampling, 2, workers.saved, "sharded", SAMPLED, str(tmp_path), "flattened", 4)
    for loaded, gone_on in launch(workers.sampling, 4, workers.resumed, "sharded", SAMPLED, str(tmp_path), "flattened"):
        assert_same(loaded, at, EXACT)
        assert_same(gone_on, end, SAME)


UNMOVED = {
    "a decay above": (Adam(lr=0.01) / AdamW(lr=1e-3, weight_decay=0.1), "group", {}),
    "the step size untuned": (Adam(lr=0.01, tune="beta1", horizon=9) / Adam(lr=1e-3), "group", {}),
    "a decay tuned": (AdamW(lr=0.01, tune=("weight_decay", "lr")) / SGD(lr=1e-3), "group", {}),
    **PLANS,
}


def test_dcp_saving_before_the_first_step_moves_nothing(tmp_path):
    """It makes a step with a step size of 0 and gradients of 0, to have a state to save: that one must not count."""
    for result in launch(workers.disturbed, 2, "sharded", UNMOVED, str(tmp_path), "flattened"):
        for name, (undisturbed, saved, loaded) in result.items():
            assert_same({name: saved}, {name: undisturbed}, EXACT)
            assert_same({name: loaded}, {name: undisturbed}, EXACT)


def test_dcp_loads_into_an_optimizer_that_has_been_looked_at(tmp_path):
    """To look at its hyperparameters makes no state: DCP would take that for the whole and load no more than it."""
    plans = {"tall": PLANS["tall"]}
    before = launch(workers.saved, 2, "sharded", plans, str(tmp_path), "flattened", 3)
    after = launch(workers.resumed, 2, "sharded", plans, str(tmp_path), "flattened", True)
    assert_same(after[0][1], before[0][1], EXACT)


def test_dcp_keeps_the_precision_of_what_is_known_of_half_precision(tmp_path):
    for whole, resumed in launch(workers.halved, 2, "sharded", PLANS["tall"], str(tmp_path / "at"), "flattened"):
        assert_same({"": resumed}, {"": whole}, EXACT)
        assert resumed["weights"]["0.weight"].dtype == torch.bfloat16
        assert resumed["state"]["0.weight"]["exp_avg"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_dcp_resumes_from_between_eval_and_train(flat, tmp_path):
    """It loads no more than what is there before: the weights of training, which it leaves out, follow from the average."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def parts(model, optimizer):
        return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}

    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
        return model, Hyperoptimizer(model.parameters())

    def go(model, optimizer, steps):
        for t in steps:
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(t))
            optimizer.zero_grad()
            (model(x) - x[:, :3].sin()).square().mean().backward()
            optimizer.step()

    model, optimizer = make()
    go(model, optimizer, range(20))
    optimizer.eval()
    dcp.save(parts(model, optimizer), checkpoint_id=tmp_path, no_dist=True)
    again, other = make()
    dcp.load(saved := parts(again, other), checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(again, saved["model"])
    set_optimizer_state_dict(again, other, saved["optimizer"], options=options)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), **EXACT)
    optimizer.train()
    other.train()
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    for mine in ((model, optimizer), (again, other)):
        go(*mine, range(20, 30))
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    assert other.hyperparameters()[0]["lr"] == pytest.approx(optimizer.hyperparameters()[0]["lr"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_dcp_says_what_it_has_lost_of_parameters_that_others_write_to(tmp_path):
    """A fresh optimizer has no such entries, so they are not loaded; of a checkpoint as a whole they are."""

    def known(full):
        options = StateDictOptions(full_state_dict=full)
        return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}

    def go(steps):
        for t in steps:
            optimizer.zero_grad()
            (model(torch.arange(12.0).view(2, 6) / (t + 9)) - 1).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight[:, 0] = 0
        return optimizer.hyperparameters()

    found = []
    for full in (None, False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 4)
        optimizer = Hyperoptimizer(model.parameters())
        go(range(6))
        if full is not None:
            saved = known(full)
            if not full:
                dcp.save(saved, checkpoint_id=tmp_path)
            model = torch.nn.Linear(6, 4)
            optimizer = Hyperoptimizer(model.parameters())
            if not full:
                dcp.load(saved := known(full), checkpoint_id=tmp_path)
            set_model_state_dict(model, saved["model"])
            with contextlib.nullcontext() if full else pytest.warns(RuntimeWarning, match="has lost last_before and last_left"):
                options = StateDictOptions(full_state_dict=full)
                set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=options)
        found.append(go(range(6, 10)))
    assert found[0] == found[2] != found[1]


def test_zero_redundancy_optimizer_resumes_from_what_one_process_has_learned():
    """It saves the state of all, and the groups of one."""
    results = launch(workers.consolidated, 2, PLANS["tall"])
    learned = results[0][0]["hyperparameters"]
    assert results[1][0]["hyperparameters"] != learned
    for whole, resumed in results:
        assert resumed["hyperparameters"] == learned
        for what in ("weights", "state"):
            torch.testing.assert_close(resumed[what], whole[what], **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_dcp_keeps_the_steps_of_each_parameter(form, tmp_path):
    """They are loaded in place: parameters that have made different numbers of steps must not share a count."""
    for whole, resumed in launch(workers.came_and_went, 2, "sharded", PLANS["tall"], str(tmp_path / "at"), form):
        assert_same({"": resumed}, {"": whole}, EXACT)


def test_killed_at_random_moments_ends_where_it_would_have(tmp_path):
    """SIGKILL, five times, anywhere between or within a step and the writing of its checkpoint."""
    dice, steps, plan = random.Random(4), 60, PLANS["a set per tensor"]
    start = multiprocessing.get_context(context())

    def begin(folder):
        folder.mkdir(exist_ok=True)
        mine, theirs = start.Pipe(duplex=False)
        process = start.Process(target=workers.endure, args=(str(folder), plan, steps, theirs))
        process.start()
        theirs.close()
        return process, mine

    undisturbed, _unread = begin(tmp_path / "undisturbed")
    for _ in range(5):
        process, progress = begin(tmp_path / "killed")
        for _ in range(dice.randint(1, 10)):
            assert progress.poll(60)
            assert progress.recv() < steps
        time.sleep(dice.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process, _unread_too = begin(tmp_path / "killed")
    for p in (process, undisturbed):
        p.join(60)
        assert p.exitcode == 0
    ends = [torch.load(tmp_path / name / "end", weights_only=True) for name in ("killed", "undisturbed")]
    torch.testing.assert_close(*ends, **EXACT)
    assert ends[0]["steps"] == steps
