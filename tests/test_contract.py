"""The contract of an optimizer of torch, row by row: what is not tested elsewhere, and where the rest is.

| row | subject | tests |
|---|---|---|
| 1 | a torch.optim.Optimizer | test_optimizer::test_is_an_optimizer_that_trains, test_schedulers::test_scheduler |
| 2 | constructor | test_constructor_takes_what_torch_optim_takes, test_errors::test_bad_input_is_named |
| 3 | same leaves, in place | test_optimizer::test_parameters_stay_the_same_leaves_updated_in_place, ::test_tied_weights, |
| | | ::test_models_can_be_copied_in_mid_training, test_idle::test_frozen_and_unused_parameters_are_not_touched |
| 4 | step is wrapped once | test_step_is_wrapped_once_for_hooks_and_profiler, test_battery::test_battery (step hooks) |
| 5 | closure | test_optimizer::test_closure_is_called_with_gradients_and_its_loss_returned, test_battery::test_battery |
| 6 | zero_grad | test_zero_grad_in_place_or_not_is_the_same, test_zero_grad_by_the_model |
| 7 | grad None | test_idle::test_parameters_that_come_and_go_count_their_own_steps, test_no_gradient_at_all_is_no_step |
| 8 | state keyed by parameter | test_state_is_keyed_by_parameter |
| 9 | casts in load_state_dict | |
| | | test_precision::test_half_precision_parameters_keep_float32_hyperparameters_through_load_state_dict |
| 10 | load_state_dict replaces | test_load_state_dict_replaces_groups_and_tensors |
| 11 | getstate: pickle, deepcopy | test_resume::test_deepcopy_and_pickle, test_pickle_of_what_torch_save_takes_whole |
| 12 | weights_only | test_resume::test_resume_is_exact_to_the_last_bit, test_weights_only_takes_every_state |
| 13 | add_param_group | test_groups::test_add_param_group_in_mid_training, test_add_param_group_shares_no_object |
| 14 | schedulers write group["lr"] | test_schedulers::test_scheduler, test_schedulers::test_every_scheduler_class_is_covered |
| 15 | monitors read float(group["lr"]) | test_monitors_read_a_float, test_lightning::test_learning_rate_monitor |
| 16 | torch.compile | test_compile::test_values_schedules_and_steps_do_not_compile_again, test_battery::test_battery, |
| | | test_compiled_models::test_a_function_that_calls_step_can_be_compiled |
| 17 | GradScaler | test_precision::test_grad_scaler_skips_the_step_of_every_level, test_battery::test_battery |
| 18 | clipping | test_clipping_hypergradients_are_of_the_clipped_gradients, test_optimizer::test_accumulation_and_clipping |
| 19 | accumulation | test_accumulation_is_one_step_of_the_sum, test_optimizer::test_accumulation_and_clipping |
| 20 | DDP | test_distributed::test_ddp_hyperparameters_are_bit_identical_on_all_ranks_after_200_steps, |
| | | ::test_ddp_equals_one_process_on_the_global_batch, |
| | | ::test_zero_redundancy_optimizer_with_a_set_per_tensor_equals_one_process |
| 21 | FSDP2 | test_distributed::test_fsdp2_equals_one_process, ::test_fsdp2_equals_one_process_for_every_rule, |
| | | ::test_fsdp2_one_small_all_reduce_per_step_over_shard_dimensions_only, |
| | | ::test_fsdp2_states_are_shards_and_towers_are_whole |
| 22 | DCP before the first step | test_checkpoint::test_dcp_saving_before_the_first_step_moves_nothing, |
| | | ::test_dcp_loads_into_an_optimizer_that_has_been_looked_at, |
| | | test_distributed::test_fsdp2_a_warm_up_from_0_counts_its_first_step |
| 23 | DCP flattening | test_checkpoint::test_dcp_flattening_resumes_on_two_ranks_to_the_last_bit, |
| | | ::test_dcp_flattening_resumes_on_other_numbers_of_ranks, ::test_dcp_keeps_the_steps_of_each_parameter |
| 24 | replaced parameters (FSDP2) | test_distributed::test_accelerate_swaps_parameters_for_shards_after_construction, |
| | | test_groups::test_parameters_may_be_replaced_after_construction |
| 25 | HF Trainer | test_transformers::test_trainer_with_decay_groups, ::test_trainer_resumes_from_its_checkpoint |
| 26 | Lightning | test_lightning::test_automatic_optimization, ::test_manual_optimization, ::test_resume |
| 27 | maximize | test_maximize_flips_the_sign_of_the_hypergradient, test_rules::test_maximize_equals_torch_optim |
| 28 | p.grad, exceptions | test_gradients_and_grad_mode_are_left_alone, test_exception_in_step_leaves_grad_mode |
| 29 | bf16, fp16 | test_precision::test_hypergradients_of_half_precision_parameters_are_summed_in_float32 |
| 30 | complex, sparse | test_optimizer::test_complex_parameters, test_battery::test_battery, |
| | | test_errors::test_sparse_gradients_are_refused_before_anything_moves |
| 31 | state, groups: the user's | test_state::test_the_next_steps_are_those_of_torch, ::test_what_was_learned_stays, |
| | | ::test_it_is_in_the_next_checkpoint, ::test_points_of_gaussian_splatting_come_and_go, |
| | | ::test_the_next_steps_are_those_of_torch_with_other_groups, ::test_what_was_learned_goes_with_its_group, |
| | | ::test_it_is_in_the_next_checkpoint_with_other_groups, test_faults::test_fine_tuning_of_a_backbone_is_resumed |
| 32 | shared storage | test_faults::test_parameters_that_share_storage_move_one_after_the_other, |
| | | ::test_one_parameter_twice_in_a_group_makes_two_moves, |
| | | test_ownership::test_parameters_of_any_layout_are_updated_in_place |
| 33 | a group with lr 0 | test_faults::test_a_group_with_a_step_size_of_0_is_frozen_until_it_is_raised, |
| | | ::test_a_frozen_group_is_that_of_torch |
| 34 | parameters of any kind | test_faults::test_frozen_parameters_of_any_kind_are_ignored, |
| | | ::test_a_group_of_frozen_parameters_may_be_added_and_named |
| 35 | modes and devices | test_faults::test_a_default_device_without_data_changes_nothing, |
| | | ::test_parameters_without_data_make_steps_without_data, ::test_fake_tensors_make_fake_steps, |
| | | ::test_anomaly_detection_finds_nothing_in_a_step_along_a_bad_gradient, ::test_a_default_device_without_float64 |
| 36 | what a checkpoint says | test_faults::test_the_state_dict_of_every_optimizer_of_torch_is_taken_over, |
| | | ::test_what_a_checkpoint_lacks_is_filled_in_with_its_default, |
| | | ::test_what_a_checkpoint_says_counts_or_is_refused_by_name, |
| | | test_state::test_a_plain_checkpoint_with_other_values_counts |
| 37 | a term that is off | test_faults::test_a_bad_gradient_does_what_it_does_with_torch, |
| | | ::test_sgd_without_momentum_forgets_a_bad_gradient, ::test_a_bad_weight_stays_alone_where_there_is_no_decay |
| 38 | train() and eval() | test_schedule_free::test_evaluation_and_back_is_exact_to_the_bit, |
| | | test_schedule_free::test_a_step_in_evaluation_goes_back_by_itself, |
| | | test_distributed::test_evaluation_equals_that_of_one_process |
| 39 | warm-ups | test_default::test_no_schedule_makes_a_step_size_more_than_twice_what_it_would_be, |
| | | test_schedulers::test_scheduler, ::test_schedules_multiply_what_is_learned, |
| | | test_faults::test_a_scheduler_made_for_a_torch_optimizer_goes_on_after_from_torch, |
| | | test_distributed::test_fsdp2_a_warm_up_from_0_counts_its_first_step |
| 40 | gradients through hooks | test_a_step_in_backward, |
| | | test_faults::test_tune_on_with_checkpoints_in_the_model_is_as_without, |
| | | ::test_tune_on_sees_what_hooks_of_a_parameter_make_of_its_gradient, |
| | | test_faults_distributed::test_what_is_tuned_on_another_loss_is_what_one_process_would_learn, |
| | | ::test_tune_on_under_ddp_with_a_reentrant_checkpoint |

"""

import copy
import io
import pickle

import pytest
import torch
from cases import parameters, train
from helpers import TOWER, TOWERS, fit, forward, network, stored
from torch import nn
from torch.optim import optimizer as hooks

from hypergradient import SGD, Adam, AdamW, Hyperoptimizer

INPUTS = {
    "tensors": lambda m: list(m.parameters()),
    "generator": lambda m: m.parameters(),
    "groups": lambda m: [{"params": m[0].parameters()}, {"params": list(m[2].parameters()), "lr": 0.01}],
    "a tensor as group": lambda m: [{"params": p} for p in m.parameters()],
    "named": lambda m: m.named_parameters(),
    "named groups": lambda m: [{"params": m[0].named_parameters("0")}, {"params": list(m[2].named_parameters("2"))}],
}


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS.keys())
def test_constructor_takes_what_torch_optim_takes(given):
    """The same parameters, groups and names, and the same weights after training."""
    (one, model), (other, twin) = ((o(given(m)), m) for o, m in zip(OPTIMIZERS, (network(), network()), strict=True))
    for mine, theirs in zip(one.param_groups, other.param_groups, strict=True):
        assert mine.get("param_names") == theirs.get("param_names")
        assert len(mine["params"]) == len(theirs["params"])
        assert mine["lr"] == theirs["lr"]
    for o, m in ((one, model), (other, twin)):
        fit(o, m, 5)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-10, atol=1e-12)


OPTIMIZERS = (lambda ps: Hyperoptimizer(ps, Adam(lr=0.01)), lambda ps: torch.optim.Adam(ps, lr=0.01))


@pytest.mark.parametrize("height", [0, 1, 4])
def test_step_is_wrapped_once_for_hooks_and_profiler(height):
    """Whatever the height, hooks see one step and a profile shows one."""
    tower = Adam(lr=0.01)
    for _ in range(height):
        tower = tower / SGD(lr=1e-5)
    mine, calls = parameters(), []
    optimizer = Hyperoptimizer(mine, tower)
    handles = [
        hooks.register_optimizer_step_pre_hook(lambda o, *_: calls.append(("global pre", o))),
        hooks.register_optimizer_step_post_hook(lambda o, *_: calls.append(("global post", o))),
        optimizer.register_step_pre_hook(lambda o, *_: calls.append(("pre", o))),
        optimizer.register_step_post_hook(lambda o, *_: calls.append(("post", o))),
    ]
    try:
        train(optimizer, mine, 3)
    finally:
        for handle in handles:
            handle.remove()
    assert {id(o) for _, o in calls} == {id(optimizer)}
    assert sorted(n for n, _ in calls) == sorted(["global pre", "global post", "pre", "post"] * 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(optimizer, mine, 2)
    counts = {e.key: e.count for e in profile.key_averages() if e.key.startswith("Optimizer.step#")}
    assert counts == {"Optimizer.step#Hyperoptimizer.step": 2}


def test_step_hooks_may_change_the_arguments():
    mine = parameters()
    optimizer, called = Hyperoptimizer(mine, TOWER), []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((*args, lambda: called.append(1)), kwargs))
    train(optimizer, mine, 2)
    assert called == [1, 1]


def test_state_dict_hooks_are_called():
    mine = parameters()
    optimizer, seen = Hyperoptimizer(mine, TOWER), []
    train(optimizer, mine, 2)
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre save"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "extra"})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("post load"))
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert seen == ["pre save", "post load"]


def test_a_hook_may_adapt_a_checkpoint():
    """As torch documents it: what the hook returns is loaded, be it that only this can be loaded at all."""
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    train(optimizer, mine, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    renamed = {**saved, "state": {("old", k): v for k, v in saved["state"].items()}, "param_groups": []}

    def adapt(_, found):
        return {"state": {k: v for (_, k), v in found["state"].items()}, "param_groups": saved["param_groups"]}

    again = Hyperoptimizer(mine, TOWER)
    with pytest.raises(ValueError, match="number of parameter groups"):
        again.load_state_dict(renamed)
    again.register_load_state_dict_pre_hook(adapt)
    again.load_state_dict(renamed)
    torch.testing.assert_close(again.state_dict(), saved, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_zero_grad_in_place_or_not_is_the_same(tower):
    """What survives a step is not the gradient itself, which may be zeroed in place and filled again."""
    runs = []
    for to_none in (True, False):
        model = network()
        optimizer = Hyperoptimizer(model.parameters(), tower)
        for t in range(8):
            optimizer.zero_grad(set_to_none=to_none)
            forward(model, t).backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        assert (model[0].weight.grad is None) == to_none
        runs.append([list(model.parameters()), optimizer.hyperparameters(), optimizer.hypergradients()])
    torch.testing.assert_close(*runs, rtol=0, atol=0, equal_nan=True)


def test_zero_grad_by_the_model():
    runs = []
    for by_model in (True, False):
        model = network()
        optimizer = Hyperoptimizer(model.parameters(), TOWER)
        for t in range(5):
            (model if by_model else optimizer).zero_grad()
            forward(model, t).backward()
            optimizer.step()
        runs.append(optimizer.hyperparameters())
    assert runs[0] == runs[1]


def test_no_gradient_at_all_is_no_step():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    optimizer.step()
    train(optimizer, mine, 5)
    learned, before = optimizer.hyperparameters(), [p.detach().clone() for p in mine]
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.hyperparameters() == learned
    torch.testing.assert_close([p.detach() for p in mine], before, rtol=0, atol=0)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
def test_state_is_keyed_by_parameter(per):
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = Hyperoptimizer(groups, TOWER, per=per)
    fit(optimizer, model, 2)
    assert set(optimizer.state) == set(model.parameters())
    for p, memory in optimizer.state.items():
        own = {n: x for n, x in memory.items() if n not in ("step", "numbers") and not n.startswith("level")}
        assert {tuple(x.shape) for x in own.values()} == {tuple(p.shape)}
    assert set(optimizer.state_dict()["state"]) == {0, 1, 2, 3}


def test_load_state_dict_replaces_groups_and_tensors():
    """Of what was there before, nothing stale is kept; a scheduler and a scaler made before it go on."""
    model, twin = network(), network()
    optimizer, other = (Hyperoptimizer(m.parameters(), TOWER) for m in (model, twin))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, other)]
    for t in range(12):
        if t % 3 == 2:
            groups = optimizer.param_groups
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            assert optimizer.param_groups is not groups
        for o, m, s in zip((optimizer, other), (model, twin), schedules, strict=True):
            fit(o, m, 1, t)
            s.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)
    assert optimizer.hyperparameters() == other.hyperparameters()
    assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"]


def test_load_state_dict_before_and_after_the_first_step():
    """A saved optimizer that has not made a step yet, and one loaded over another that has."""
    model = network()
    fresh = Hyperoptimizer(model.parameters(), TOWER)
    saved = copy.deepcopy(fresh.state_dict())
    used = Hyperoptimizer((twin := network()).parameters(), TOWER)
    fit(used, twin, 4)
    twin.load_state_dict(model.state_dict())
    used.load_state_dict(saved)
    fit(used, twin, 4)
    fit(fresh, model, 4)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)
    assert used.hyperparameters() == fresh.hyperparameters()


def test_pickle_of_what_torch_save_takes_whole():
    """Model and optimizer in one file: they belong together afterwards."""
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    fit(optimizer, model, 3)
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    for twin, other in (torch.load(file, weights_only=False), copy.deepcopy((model, optimizer))):
        assert other.param_groups[0]["params"][0] is twin[0].weight
        fit(other, twin, 3, 3)
    fit(optimizer, model, 3, 3)
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=0, atol=0)
    assert repr(pickle.loads(pickle.dumps(optimizer))) == repr(optimizer)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_weights_only_takes_every_state(tower, per):
    """Tensors and plain values alone, so that it can also be read without this package."""
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = Hyperoptimizer(groups, tower, per=per)
    fit(optimizer, model, 2)
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    assert b"hypergradient" not in file.getvalue()
    torch.testing.assert_close(stored(optimizer.state_dict()), optimizer.state_dict(), rtol=0, atol=0, equal_nan=True)


def test_add_param_group_shares_no_object():
    """Neither with the defaults nor with another group: what one learns or is told, the other does not see."""
    model = network()
    optimizer = Hyperoptimizer(model[0].parameters(), TOWER)
    fit(optimizer, model, 3)
    optimizer.add_param_group({"params": model[2].parameters()})
    fresh = [v for g in optimizer.param_groups for v in g.values() if isinstance(v, torch.Tensor)]
    assert not fresh
    assert optimizer.hyperparameters(1)[0]["lr"] == optimizer.defaults["lr"] == 0.01
    optimizer.param_groups[1]["lr"] = 0.5
    assert optimizer.param_groups[0]["lr"] == optimizer.defaults["lr"] == 0.01


def test_monitors_read_a_float():
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), AdamW(lr=0.01) / SGD(lr=1e-3))
    for group in (*optimizer.param_groups, optimizer.defaults):
        for name in ("lr", "beta1", "beta2", "eps", "weight_decay"):
            assert type(group[name]) is float
    fit(optimizer, model, 3)
    assert float(optimizer.param_groups[0]["lr"]) == 0.01
    assert all(type(v) is float for level in optimizer.hyperparameters() for v in level.values())
    assert all(type(v) is float for level in optimizer.hypergradients() for v in level.values())


def test_clipping_hypergradients_are_of_the_clipped_gradients():
    p = torch.zeros(4, requires_grad=True)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=0.0))
    for g in (3.0, 5.0):
        p.grad = torch.full((4,), g)
        nn.utils.clip_grad_norm_([p], 1.0)
        optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(-1.0, rel=1e-5)
    for g in (3.0, -5.0):
        p.grad = torch.full((4,), g)
        nn.utils.clip_grad_value_([p], 0.25)
        optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(4 * 0.25 * 0.25)


def test_accumulation_is_one_step_of_the_sum():
    runs = []
    for parts in ([1.0, 2.0, 4.0], [7.0]):
        p = torch.zeros(3, requires_grad=True)
        optimizer = Hyperoptimizer([p], Adam(lr=0.1) / SGD(lr=0.01))
        for _ in range(4):
            optimizer.zero_grad()
            for part in parts:
                (part * (p - 1).square().sum()).backward()
            optimizer.step()
        runs.append([p.tolist(), optimizer.hyperparameters(), optimizer.hypergradients()])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_maximize_flips_the_sign_of_the_hypergradient(tower):
    """Climbing -L is descending L, at every level: the same weights and the same values learned."""
    runs = []
    for sign in (1, -1):
        model = network()
        optimizer = Hyperoptimizer(model.parameters(), tower, maximize=sign < 0)
        for t in range(6):
            optimizer.zero_grad()
            (sign * forward(model, t)).backward()
            optimizer.step()
        runs.append([list(model.parameters()), optimizer.hyperparameters(), optimizer.hypergradients()])
    torch.testing.assert_close(*runs, rtol=0, atol=0, equal_nan=True)


def test_maximize_can_be_a_group_s():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b], "maximize": True}], SGD(lr=0.1) / SGD(lr=0.01))
    for _ in range(5):
        a.grad, b.grad = torch.ones(2), -torch.ones(2)
        optimizer.step()
    assert torch.equal(a, b)
    assert optimizer.hyperparameters(0) == optimizer.hyperparameters(1)


@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_gradients_and_grad_mode_are_left_alone(tower):
    """The tensors in p.grad are the same objects with the same contents and version, and no graph hangs on anything."""
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), tower)
    for t in range(4):
        optimizer.zero_grad()
        forward(model, t).backward()
        grads = [p.grad for p in model.parameters()]
        before = [(g.clone(), g._version, g.data_ptr()) for g in grads]
        optimizer.step()
        for p, g, (content, version, pointer) in zip(model.parameters(), grads, before, strict=True):
            assert p.grad is g
            assert torch.equal(g, content)
            assert (g._version, g.data_ptr()) == (version, pointer)
            assert not g.requires_grad
    assert torch.is_grad_enabled()


class Failed(Exception):
    """Of a test."""


def test_exception_in_step_leaves_grad_mode():
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    fit(optimizer, model, 3)
    before = copy.deepcopy([list(model.parameters()), optimizer.state_dict()])

    def fails():
        raise Failed

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with pytest.raises(Failed):
                optimizer.step(fails)
            assert torch.is_grad_enabled() == enabled
            model[0].weight.grad = model[0].weight.detach().to_sparse()
            with pytest.raises(RuntimeError, match="sparse"):
                optimizer.step()
            assert torch.is_grad_enabled() == enabled
    torch.testing.assert_close([list(model.parameters()), optimizer.state_dict()], before, rtol=0, atol=0, equal_nan=True)
    fit(optimizer, model, 3)


def test_no_grad_around_the_step():
    runs = []
    for context in (torch.enable_grad, torch.no_grad):
        model = network()
        optimizer = Hyperoptimizer(model.parameters(), TOWER)
        for t in range(5):
            optimizer.zero_grad()
            forward(model, t).backward()
            with context():
                optimizer.step()
        runs.append([list(model.parameters()), optimizer.hyperparameters()])
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_load_state_dict_of_other_groups_says_so():
    model, twin = network(), network()
    groups = [{"params": twin[0].parameters()}, {"params": twin[2].parameters()}]
    optimizer, other = Hyperoptimizer(model.parameters(), TOWER), Hyperoptimizer(groups, TOWER)
    fit(other, twin, 2)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(other.state_dict())


def test_a_step_in_backward():
    """An optimizer per parameter, stepping in a hook as soon as its gradient is there, within the backward pass."""
    model, twin = network(), network()
    by_hook = {p: Hyperoptimizer([p], TOWER) for p in model.parameters()}
    after = {p: Hyperoptimizer([p], TOWER) for p in twin.parameters()}

    def hook(p):
        by_hook[p].step()
        by_hook[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for t in range(6):
        forward(model, t).backward()
        forward(twin, t).backward()
        for optimizer in after.values():
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)


def test_a_subclass_made_on_the_fly_is_one_too():
    """As some frameworks wrap; with hooks, state and pickling as ever."""
    kind = type("Wrapped", (Hyperoptimizer,), {"__module__": __name__})
    globals()["Wrapped"] = kind
    model, twin = network(), network()
    optimizer, other = kind(model.parameters(), TOWER), Hyperoptimizer(twin.parameters(), TOWER)
    fit(optimizer, model, 3)
    fit(other, twin, 3)
    assert optimizer.hyperparameters() == other.hyperparameters()
    assert type(copy.deepcopy(optimizer)) is type(pickle.loads(pickle.dumps(optimizer))) is kind
    fit(other, twin, 2)
    other.load_state_dict(optimizer.state_dict())
    assert other.hyperparameters() == optimizer.hyperparameters()
