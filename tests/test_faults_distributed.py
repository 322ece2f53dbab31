"""Faults with several processes: another loss to tune on under DDP and FSDP2, and FSDP 1, of which a tower knows nothing."""

from functools import cache

import fault_workers
import pytest
import torch
import workers
from workers import PLANS, launch

from hypergradient import SGD, Adam, auto

SAME = {"rtol": 1e-8, "atol": 1e-11, "equal_nan": True}
EXACT = {"rtol": 0, "atol": 0, "equal_nan": True}
ALL = {**PLANS, "short": fault_workers.PLAN}
FEW = {name: ALL[name] for name in ("short", "cosine")}


@cache
def alone(first=False):
    workers.strict()
    return fault_workers.tuned("alone", ALL, 5, first=first)


def assert_same(mine, theirs, options=SAME):
    """Of each plan: weights, hyperparameters and hypergradients of all levels."""
    for name in mine:
        for what in ("weights", "hyperparameters", "hypergradients"):
            torch.testing.assert_close(
                mine[name][what], theirs[name][what], **options, msg=lambda m, n=name, w=what: f"{n}, {w}: {m}"
            )


@pytest.mark.parametrize(
    ("how", "ranks", "plans"),
    [("ddp", 2, ALL), ("sharded", 2, ALL), ("hybrid", 4, FEW)],
    ids=["DDP", "FSDP2", "FSDP2, hybrid"],
)
def test_what_is_tuned_on_another_loss_is_what_one_process_would_learn(how, ranks, plans):
    """Ranks drifted apart under DDP; it was not possible under FSDP2."""
    first, *others = launch(fault_workers.tuned, ranks, how, plans, 5)
    for other in others:
        assert_same(first, other, EXACT)
    assert_same(first, alone())


@pytest.mark.parametrize("how", ["ddp", "sharded"])
def test_tune_on_may_come_before_the_backward_pass(how):
    first, other = launch(fault_workers.tuned, 2, how, FEW, 5, False, True)
    assert_same(first, other, EXACT)
    assert_same(first, alone())


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("size", [25, 1e-5], ids=["together", "each by itself"])
def test_tune_on_under_ddp_leaves_gradients_that_are_views_of_what_is_sent(size, first):
    first, other = launch(fault_workers.tuned, 2, "ddp", FEW, 5, size, first)
    assert_same(first, other, EXACT)
    assert_same(first, alone())


def test_tune_on_under_ddp_with_a_reentrant_checkpoint():
    first, other = launch(fault_workers.recomputed, 2, "ddp", FEW, 5)
    assert_same(first, other, EXACT)
    assert_same(first, alone())


@pytest.mark.parametrize(("how", "ranks"), [("ddp", 2), ("sharded", 2), ("hybrid", 4)])
def test_what_others_write_to_parameters_is_seen_by_all(how, ranks):
    plans = {**FEW, "default": (auto(), "group", {})}
    workers.strict()
    first, *others = launch(fault_workers.clamped, ranks, how, plans, 8)
    for other in others:
        assert_same(first, other, EXACT)
    assert_same(first, fault_workers.clamped("alone", plans, 8))


@pytest.mark.parametrize("bound", [0.46, 0.48])
def test_what_is_written_to_some_shards_alone_is_known_in_all(bound, tmp_path):
    """Or the checkpoint cannot be made."""
    plans = {"tower": (Adam(lr=0.01) / SGD(lr=1e-3), "group", {}), "default": (auto(), "group", {})}
    workers.strict()
    first, other = launch(fault_workers.clamped, 2, "sharded", plans, 8, bound, str(tmp_path))
    assert_same(first, other, EXACT)
    assert_same(first, fault_workers.clamped("alone", plans, 8, bound))


def test_a_run_of_shards_that_others_write_to_is_resumed_to_the_last_bit():
    for first, other in launch(fault_workers.loaded, 2, (Adam(lr=0.01) / SGD(lr=1e-2), "group", {})):
        assert first == other


def test_a_large_shard_that_is_masked_is_masked_in_the_average():
    lr, row, state = fault_workers.pruned(False)
    for other in launch(fault_workers.pruned, 2, True):
        assert other[1] == row == 0
        assert other[0] == pytest.approx(lr, rel=1e-5)
        assert other[2] == state


def test_a_group_that_comes_after_a_load_is_saved_as_the_others_are():
    first, other = launch(fault_workers.grown, 2, Adam(lr=0.01) / SGD(lr=1e-3))
    assert first == other


@pytest.mark.parametrize("orig", [False, True], ids=["flat parameters", "original parameters"])
def test_a_tower_under_fsdp_1_says_to_use_fsdp_2_or_learns_one_value(orig):
    """Each rank learned its own, and saving crashed."""
    for tower in (SGD(lr=0.1) / SGD(lr=1e-2), Adam(lr=0.01) / SGD(lr=1e-3)):
        results = launch(fault_workers.flat, 2, tower, orig)
        if results[0]["said"] is None:
            assert results[0]["lr"] == results[1]["lr"]
        else:
            assert all("FSDP2" in r["said"] or "fully_shard" in r["said"] for r in results)


@pytest.mark.parametrize("orig", [False, True], ids=["flat parameters", "original parameters"])
def test_a_rule_alone_under_fsdp_1_is_that_of_torch(orig):
    for mine, theirs in launch(fault_workers.flat_alone, 2, orig):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
