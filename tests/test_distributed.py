"""Many processes learn what one would: DDP, FSDP2, replicas, hybrids, tensor parallelism, on 2 and 4 ranks over gloo.

Rows 20, 21 and 24 of the contract of an optimizer of torch. Everything is compared with one process on the same global
batch, in float64, to the tolerance of sums that are taken in another order.
"""

from functools import cache

import pytest
import torch
import workers
from helpers import EVERY, EXACT
from workers import EVERY_RULE, PLANS, SAME, SAMPLED, assert_same, launch

from hypergradient import Adam


@cache
def alone(steps, rules=False):
    return workers.trained("alone", EVERY_RULE if rules else PLANS, steps)


@pytest.mark.parametrize("ranks", [2, 4][::EVERY])
def test_ddp_hyperparameters_are_bit_identical_on_all_ranks_after_200_steps(ranks):
    first, *others = launch(workers.trained, ranks, "ddp", {"tall": PLANS["tall"]}, 200)
    for other in others:
        assert_same(first, other, EXACT)
    assert first["tall"]["hyperparameters"][0][0]["lr"] != 0.01


@pytest.mark.parametrize("ranks", [2, 4][::EVERY])
def test_ddp_equals_one_process_on_the_global_batch(ranks):
    for result in launch(workers.trained, ranks, "ddp", PLANS, 6):
        assert_same(result, alone(6))


@pytest.mark.parametrize(
    ("how", "ranks"),
    [("2d", 4), ("sharded", 2), ("hybrid", 4), ("replicated", 2), ("tensor parallel", 2), ("sharded", 4)][::EVERY],
)
def test_fsdp2_equals_one_process(how, ranks):
    """With uneven and empty shards, a set per tensor, groups, cosines (squared norms), and Muon, which mixes elements."""
    first, *others = launch(workers.trained, ranks, how, PLANS, 6)
    assert_same(first, alone(6))
    for other in others:
        assert_same(first, other, EXACT)


@pytest.mark.parametrize(("how", "ranks"), [("sharded", 4), ("ddp", 2), ("sharded", 2), ("hybrid", 4)][::EVERY])
def test_samples_are_the_same_in_many_processes(how, ranks):
    """The same elements of the same rows, whoever holds them."""
    one = workers.sampling(workers.trained, "alone", SAMPLED, 6)
    kept = one["the default"]["state"]["0.weight"]["last_movement"]
    assert kept.shape == (4, 3)
    assert kept.any(dim=1).tolist() == [True, False, False, True]
    for result in launch(workers.sampling, ranks, workers.trained, how, SAMPLED, 6):
        assert_same(result, one)


def test_rows_that_are_cut_twice_are_read_as_one_process_reads_them():
    lr, kept = workers.sampling(workers.cut_twice, False)
    assert kept == 4
    for result in launch(workers.sampling, 4, workers.cut_twice, True):
        assert result == (pytest.approx(lr, rel=1e-9), kept)


def test_a_pass_in_evaluation_sees_the_average_and_one_in_training_does_not():
    expected = workers.looked_at(False)
    assert expected[0] == expected[2] != pytest.approx(expected[1], rel=1e-4)
    for result in launch(workers.looked_at, 2, True):
        assert result == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("how", "ranks"), [("ddp", 2), ("sharded", 4)])
def test_evaluation_equals_that_of_one_process(how, ranks):
    plan = PLANS["the default"]
    expected = workers.evaluated("alone", plan)
    for result in launch(workers.evaluated, ranks, how, plan):
        for mine, theirs in zip(result, expected, strict=True):
            assert_same({"": mine}, {"": theirs})


def test_fsdp2_state_may_be_copied_and_written_to():
    """Small shards lie side by side: `copy.deepcopy` takes one that has an offset for something else."""
    plan = PLANS["tall"]
    expected = workers.halved_in_place("alone", plan)
    for result in launch(workers.halved_in_place, 2, "sharded", plan):
        for mine, theirs in zip(result, expected, strict=True):
            assert_same({"": mine}, {"": theirs})


def test_fsdp2_equals_one_process_for_every_rule():
    first, other = launch(workers.trained, 2, "sharded", EVERY_RULE, 4)
    assert_same(first, alone(4, rules=True))
    assert_same(first, other, EXACT)


@pytest.mark.parametrize(
    ("how", "ranks", "reductions"),
    [("ddp", 2, 0), ("replicated", 2, 0), ("sharded", 2, 1), ("hybrid", 4, 1), ("2d", 4, 2)],
)
def test_fsdp2_one_small_all_reduce_per_step_over_shard_dimensions_only(how, ranks, reductions):
    """One per dimension of the mesh along which there are shards, with a few numbers for each hyperparameter: one for
    each of the ways to be spread, of which "2d" has two.
    """
    plans = {name: PLANS[name] for name in ("tall", "a set per tensor", "two groups")}
    numbers = {"tall": 3, "a set per tensor": 3 * 2 * 6, "two groups": 2 * 3}
    for result in launch(workers.sent, ranks, how, plans):
        for name, steps in result.items():
            for sent in steps:
                if how == "replicated":  # its gradients are left to be summed over the batch, one by one
                    sent = [(operation, size) for operation, size in sent if operation == "allreduce_"]
                assert [operation for operation, _ in sent] == ["allreduce_"] * reductions, name
                assert all(size <= numbers[name] * max(reductions, 1) for _, size in sent)


def test_fsdp2_a_rule_alone_sends_nothing():
    for result in launch(workers.sent, 2, "sharded", {"": (Adam(), "group", {})}):
        assert result[""] == [[], [], []]


def test_fsdp2_states_are_shards_and_towers_are_whole():
    for rank, result in enumerate(launch(workers.kinds, 2, "sharded", PLANS["tall"])):
        for found in result.values():
            assert set(found["moved"]) == {"DTensor"}
            assert found["alike"]
            assert set(found["tower"]) == {"Tensor"}
        assert result["4.bias"]["here"] == 1 - rank  # a shard with nothing in it


def test_fsdp2_states_of_muon_are_whole_on_every_rank():
    first, other = launch(workers.kinds, 2, "sharded", PLANS["Muon"])
    assert set(first["0.weight"]["moved"]) == {"DTensor"}
    assert not first["0.weight"]["alike"]
    assert first["0.bias"]["alike"]
    assert first.keys() == other.keys()


def test_fsdp2_a_gradient_that_is_not_finite_on_one_rank_is_held_on_all():
    results = launch(workers.poisoned, 2, "sharded", PLANS["tall"])
    for before, after in results:
        assert before["hyperparameters"] == after["hyperparameters"]
        assert before["weights"]["0.weight"].isfinite().all()
        torch.testing.assert_close(after["weights"]["0.weight"], results[0][1]["weights"]["0.weight"], **EXACT)


def test_fsdp2_a_warm_up_from_0_counts_its_first_step():
    """A rank without any elements knows of no gradient but 0; all have to agree on what is a step."""
    plan = PLANS["a set per tensor"]
    for result in launch(workers.warmed_up, 2, "sharded", plan):
        assert_same({"": result}, {"": workers.warmed_up("alone", plan)})


def test_fsdp2_compiled_equals_one_process():
    """What is sent is sent outside of what is compiled, also where a step is otherwise compiled as a whole."""
    plan = PLANS["cosine"]
    for result in launch(workers.compiled, 2, "sharded", plan):
        assert_same({"": result}, {"": workers.compiled("alone", plan, False)})


def test_fsdp2_parameters_that_come_and_go():
    plan = PLANS["cosine"]
    for result in launch(workers.sparing, 2, "sharded", plan):
        assert_same({"": result}, {"": workers.sparing("alone", plan)})


def test_accelerate_swaps_parameters_for_shards_after_construction():
    """As Accelerate does under FSDP2: the optimizer is made of plain parameters, its groups are then given DTensors."""
    plans = {name: PLANS[name] for name in ("tall", "a set per tensor", "Muon")}
    for result in launch(workers.trained, 2, "sharded", plans, 6, True):
        assert_same(result, {name: alone(6)[name] for name in plans})


def test_zero_redundancy_optimizer_with_a_set_per_tensor_equals_one_process():
    """Each rank tunes what it moves. With a set of hyperparameters per tensor that is all there is to know."""
    plan = (Adam(lr=0.01, horizon=5) / Adam(lr=1e-3), "tensor", {})
    results = [result[""] for result in launch(workers.trained, 2, "zero", {"": plan}, 6)]
    one = workers.trained("alone", {"": plan}, 6)[""]
    for result in results:
        torch.testing.assert_close(result["weights"], one["weights"], **SAME)
    rates = [rate for result in results for rate in result["hyperparameters"][0][0]["lr"]]
    torch.testing.assert_close(sorted(rates), sorted(one["hyperparameters"][0][0]["lr"]), **SAME)


def test_zero_redundancy_optimizer_with_a_set_per_group_has_one_per_rank():
    """What ZeroRedundancyOptimizer makes on each rank does not learn of the others; the weights stay the same on all."""
    one, other = (result["tall"] for result in launch(workers.trained, 2, "zero", {"tall": PLANS["tall"]}, 6))
    torch.testing.assert_close(one["weights"], other["weights"], **EXACT)
    assert one["hyperparameters"] != other["hyperparameters"]
