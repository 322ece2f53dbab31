"""History: what it records is what was in force, it costs nothing to speak of, and it can be repeated."""

import copy
import csv
import json
import math
import pickle

import pytest
import torch
from cases import parameters, train
from frameworks import FINE, TOWER, Module, fit, lightning_advises, llama, trainer
from helpers import HEIGHT_3, NoHostSynchronization, stored, tensors
from lightning.pytorch.loggers import CSVLogger

from hypergradient import POSITIVE, SGD, Adam, AdamW, History, Hyperoptimizer, RMSprop
from hypergradient.callbacks import current, for_lightning, for_trainer

LOG = AdamW(lr=0.01, tune=("lr", "weight_decay"), charts={"lr": POSITIVE}, horizon=9, normalize="cosine") / SGD(lr=0.1)
EACH = Adam(lr=0.01) / SGD(lr={"lr": 1e-5, "beta1": 1e-4, "beta2": 1e-4}) / SGD(lr=1e-9)
MOMENTUM = SGD(lr=0.1, momentum=0.5) / SGD(lr=0.01)


def halves(kind, *args, **options):
    """An optimizer with two groups."""
    mine = parameters()
    return mine, kind([{"params": mine[:2]}, {"params": mine[2:], "lr": 0.02}], *args, **options)


def recorded(tower, steps=20, every=1, **options):
    mine, optimizer = halves(Hyperoptimizer, tower, **options)
    history = History(optimizer, every)
    train(optimizer, mine, steps)
    return mine, optimizer, history


@pytest.mark.parametrize("look", [False, True])
def test_a_step_in_which_nothing_moves_is_no_record(look):
    """Also where a schedule has gone on, and somebody has looked."""
    mine, optimizer, history = recorded(LOG, 3)
    before = history.records()
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    if look:
        repr(optimizer)
    optimizer.zero_grad()
    optimizer.step()
    assert repr(history.records()) == repr(before)
    train(optimizer, mine, 1, 3)
    assert history.records()[-1]["step"] == 3


def flat(values):
    return {f"{n}.{k}" if k else n: x for n, v in values.items() for k, x in (v if isinstance(v, dict) else {"": v}).items()}


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("tower", [Adam(), HEIGHT_3, LOG, EACH], ids=repr)
def test_it_records_what_was_in_force(tower, per):
    """Step by step what the optimizer says itself, with a schedule of another hook in between."""
    mine, optimizer = halves(Hyperoptimizer, tower, per=per)
    said = []
    optimizer.register_step_post_hook(lambda o, *_: said.append([(o.hyperparameters(g), o.hypergradients(g)) for g in (0, 1)]))
    optimizer.register_step_post_hook(lambda o, *_: o.param_groups[1].update(lr=0.9 * o.param_groups[1]["lr"]))
    history = History(optimizer, every=3)
    train(optimizer, mine, 8)
    records = history.records()
    assert sorted({r["step"] for r in records}) == [0, 3, 6]
    for r in records:
        values, slopes = (flat(told[r["level"]]) for told in said[r["step"]][r["group"] or 0])
        assert r["value"] == values[r["name"]]
        torch.testing.assert_close(r["hypergradient"], slopes.get(r["name"]), rtol=0, atol=0, equal_nan=True)
        assert r["rule"] == type(optimizer.tower.rules[r["level"]]).__name__
    for step in (0, 3, 6):
        names = [(r["group"], r["level"], r["name"]) for r in records if r["step"] == step]
        levels = [said[0][g][0] for g in (0, 1)]
        expected = [(g, 0, n) for g in (0, 1) for n in flat(levels[g][0])]
        expected += [(None, k, n) for k, values in enumerate(levels[0]) if k for n in flat(values)]
        assert sorted(names, key=str) == sorted(expected, key=str)


@pytest.mark.usefixtures("without_tapes")
@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize("tower", [HEIGHT_3, LOG], ids=repr)
def test_recording_does_not_wait_for_the_device(tower, per, monkeypatch):
    _mine, optimizer, history = recorded(tower, 3, per=per)
    optimizer.param_groups[0]["lr"] *= 0.9
    tolist, counts = torch.Tensor.tolist, {id(b.steps) for group in optimizer._own.groups for b in group.buckets}
    with monkeypatch.context() as patch, NoHostSynchronization():  # to which `tolist` is not dispatched; counts are on the CPU
        patch.setattr(torch.Tensor, "tolist", lambda x: tolist(x) if id(x) in counts else pytest.fail("read on the host"))
        optimizer.step()
        with pytest.raises(pytest.fail.Exception):
            history.records()
    assert history.records()[-1]["step"] == 3


def test_of_each_recorded_step_it_keeps_one_tensor_until_it_is_read():
    mine, optimizer, history = recorded(HEIGHT_3, 10, every=10)
    before = tensors()[0]
    train(optimizer, mine, 100)
    assert tensors()[0] == before + 10
    history.records()
    assert tensors()[0] == before - 1


def test_the_training_is_the_same_with_and_without():
    mine, _, _ = recorded(HEIGHT_3)
    alone, optimizer = halves(Hyperoptimizer, HEIGHT_3)
    train(optimizer, alone, 20)
    torch.testing.assert_close(mine, alone, rtol=0, atol=0)


def test_after_close_nothing_is_recorded():
    mine, optimizer, history = recorded(LOG, 3)
    history.close()
    history.close()
    train(optimizer, mine, 3)
    assert {r["step"] for r in history.records()} == {0, 1, 2}


def test_every_step_counts_whoever_moves_in_it():
    mine, optimizer = halves(Hyperoptimizer, MOMENTUM)
    history = History(optimizer)
    for t in range(6):
        for k, p in enumerate(mine):
            p.grad = torch.ones_like(p) if (k < 2) == (t < 3) else None
        optimizer.step()
    assert list(dict.fromkeys(r["step"] for r in history.records())) == [0, 1, 2, 3, 4, 5]
    known = [r["step"] for r in history.records() if r["group"] == 1 and not math.isnan(r["hypergradient"] or math.nan)]
    assert set(known) == {4, 5}


def test_a_parameter_that_never_moves_does_not_hide_the_others():
    a, b, c = (torch.ones(1, requires_grad=True) for _ in range(3))
    optimizer = Hyperoptimizer([a, b, c], SGD(lr=0.1) / SGD(lr=0.0), per="tensor")
    for _ in range(2):
        b.grad, c.grad = torch.ones(1), torch.full((1,), 2.0)
        optimizer.step()
    told = {tag.rpartition(".")[2]: x for tag, x in current(optimizer).items() if tag.startswith("hypergradients/0.SGD.lr")}
    assert told == {"min": -4.0, "median": -2.5, "max": -1.0}


def test_a_group_that_is_added_later():
    mine, optimizer, history = recorded(LOG, 3)
    twin = recorded(LOG, 3)[2].records()
    more = parameters()
    optimizer.add_param_group({"params": more})
    train(optimizer, mine, 2)
    assert repr([r for r in history.records() if r["step"] < 3]) == repr(twin)
    assert {r["group"] for r in history.records() if r["step"] == 4} == {0, 1, 2, None}


# ------------------------------------------------------------------- to repeat

REPLAYED = {
    "SGD": (MOMENTUM, torch.optim.SGD, {}),
    "SGD with a decay of its own": (SGD(lr=0.1, weight_decay=0.1) / SGD(lr=0.01), torch.optim.SGD, {"weight_decay": 0.1}),
    "betas": (Adam(lr=0.01) / Adam(lr=1e-3), torch.optim.Adam, {}),
    "weight decay": (LOG, torch.optim.AdamW, {}),
    "alpha, momentum": (
        RMSprop(lr=0.01, momentum=0.5, tune=("lr", "alpha", "momentum")) / SGD(lr=1e-4),
        torch.optim.RMSprop,
        {},
    ),
}


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize(("tower", "kind", "options"), REPLAYED.values(), ids=REPLAYED.keys())
def test_a_tuned_run_is_repeated_with_a_plain_optimizer(tower, kind, options, per):
    """The recorded schedule and torch.optim give the weights of the tower, in every step."""
    mine, optimizer = halves(Hyperoptimizer, tower, per=per)
    history, ways = History(optimizer), []
    for t in range(30):
        ways.append([p.detach().clone() for p in mine])
        optimizer.param_groups[0]["lr"] *= 0.98  # schedules on top
        if "weight_decay" not in optimizer.rules[0].tuned():
            optimizer.param_groups[0]["weight_decay"] = 0.01 * (t + 1)
        train(optimizer, mine, 1, t)
    again = parameters()
    groups = [{"params": [p]} for p in again] if per == "tensor" else [{"params": again[:2]}, {"params": again[2:]}]
    plain = kind(groups, lr=99.0, **options)
    scheduler = history.scheduler(plain)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    for t in range(30):
        torch.testing.assert_close([p.detach() for p in again], ways[t], rtol=1e-10, atol=1e-10)
        if t == 15:  # it is checkpointed as every other one
            saved = stored([plain.state_dict(), scheduler.state_dict()])
            scheduler = history.scheduler(plain)
            for thing, state in zip((plain, scheduler), saved, strict=True):
                thing.load_state_dict(state)
        train(plain, again, 1, t)
        scheduler.step()
    torch.testing.assert_close(again, mine, rtol=1e-10, atol=1e-10)


def test_between_recorded_steps_the_schedule_interpolates_and_after_the_last_it_stays():
    _, _, history = recorded(MOMENTUM, 5, every=4)
    first, last = (next(r["value"] for r in history.records() if r["step"] == s and r["name"] == "lr") for s in (0, 4))
    _, plain = halves(torch.optim.SGD, lr=99.0)
    scheduler, seen = history.scheduler(plain), []
    for _ in range(7):
        seen.append(scheduler.get_last_lr()[0])
        plain.step()
        scheduler.step()
    assert seen == pytest.approx([first + min(k, 4) / 4 * (last - first) for k in range(7)], rel=1e-12)
    assert seen[0] == first
    assert seen[4] == last


# ---------------------------------------------------------------------- to keep


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_csv_and_json(tmp_path, per):
    _, optimizer, history = recorded(LOG, 4, per=per)
    records = history.records()
    history.to_csv(tmp_path / "h.csv")
    with open(tmp_path / "h.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "group", "level", "rule", "name", "value", "hypergradient"]
    assert [json.loads(row["value"]) for row in rows] == [r["value"] for r in records]
    assert [row["group"] for row in rows] == ["" if r["group"] is None else str(r["group"]) for r in records]
    history.to_json(str(tmp_path / "h.json"))
    content = json.loads((tmp_path / "h.json").read_text(), parse_constant=pytest.fail)
    assert (content["tower"], content["every"]) == (repr(optimizer.tower), 1)
    assert [r["value"] for r in content["records"]] == [r["value"] for r in records]
    tuned = [(str(r["hypergradient"]), str(kept["hypergradient"])) for r, kept in zip(records, content["records"], strict=True)]
    assert all(a.replace("nan", "None") == b for a, b in tuned)
    assert any(a != b for a, b in tuned)


@pytest.mark.parametrize("keep", [True, False])
def test_a_resumed_run_continues_its_history(keep):
    """With its state_dict it knows all; without, it still counts on."""
    _, _, whole = recorded(LOG, 12, every=2)
    mine, optimizer, history = recorded(LOG, 7, every=2)
    state, told = stored([optimizer.state_dict(), history.state_dict()])
    optimizer = Hyperoptimizer([{"params": mine[:2]}, {"params": mine[2:], "lr": 0.02}], LOG)
    again = History(optimizer, every=2)
    optimizer.load_state_dict(state)
    if keep:
        again.load_state_dict(told)
    train(optimizer, mine, 5, 7)
    expected = [r for r in whole.records() if keep or r["step"] > 6]
    assert repr(again.records()) == repr(expected)  # NaN is not itself


def test_a_run_that_goes_back_writes_over_what_came_after():
    mine, optimizer, history = recorded(LOG, 3)
    state = copy.deepcopy(optimizer.state_dict())
    train(optimizer, mine, 4, 3)
    optimizer.load_state_dict(state)
    train(optimizer, mine, 2, 50)
    assert list(dict.fromkeys(r["step"] for r in history.records())) == [0, 1, 2, 3, 4]


class Writer(list):
    def add_scalar(self, *args):
        self.append(args)


def test_tensorboard():
    _, optimizer, history = recorded(LOG, 3, every=2)
    history.to_tensorboard(written := Writer())
    assert {step for _, _, step in written} == {0, 2}
    tags = {tag for tag, _, _ in written}
    assert tags == {
        f"{what}/0.AdamW.{n}.group{g}"
        for what in ("hyperparameters", "hypergradients")
        for n in ("lr", "weight_decay")
        for g in (0, 1)
    }
    assert ("hyperparameters/0.AdamW.lr.group1", optimizer.hyperparameters(1)[0]["lr"], 2) in written
    assert all(math.isfinite(value) for _, value, _ in written)
    _, optimizer, history = recorded(LOG, 1, per="tensor")
    history.to_tensorboard(written := Writer())
    assert ("hyperparameters/0.AdamW.lr.group1.median", 0.02, 0) in written


def test_tensorboard_itself(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    _, optimizer, history = recorded(LOG, 3)
    with SummaryWriter(tmp_path) as writer:
        history.to_tensorboard(writer)
    read = EventAccumulator(str(tmp_path)).Reload().Scalars("hyperparameters/0.AdamW.lr.group0")
    assert [(e.step, e.value) for e in read][-1] == pytest.approx((2, optimizer.hyperparameters()[0]["lr"]))


# ----------------------------------------------------------------------- to see

SEEN = {  # by level, from the left: what is on the axis, and whether it is logarithmic
    "SGD": (MOMENTUM, [("lr", "log"), ("momentum", "linear")]),
    "one on each": (LOG, [("lr, weight_decay", "log")]),
    "height 3": (HEIGHT_3, [("lr", "log"), ("beta1, beta2", "linear")] * 2 + [("lr", "log")]),
    "a value for each": (EACH, [("lr", "log"), ("beta1, beta2", "linear"), ("lr.lr, lr.beta1, lr.beta2", "log")]),
    "no tower": (Adam(), [("lr", "log")]),
    "0": (SGD(lr=0.0) / SGD(lr=0.0), [("lr", "linear")]),
}


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize(("tower", "panels"), SEEN.values(), ids=SEEN.keys())
def test_the_picture(tmp_path, tower, panels, per):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, tower, per=per)
    history = History(optimizer)
    train(optimizer, mine, 5)
    figure = history.plot()
    figure.savefig(tmp_path / "history.png")
    assert [(a.get_ylabel(), a.get_yscale()) for a in figure.axes] == panels
    assert {a.get_xlabel() for a in figure.axes} == {"step"}
    assert figure.get_suptitle().replace("\n", " ") == repr(optimizer.tower)
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [0, 1, 2, 3, 4]
    legend = figure.axes[0].get_legend().get_texts()[0].get_text()
    assert legend.startswith(f"lr: {line.get_ydata()[0]:.3g} → {line.get_ydata()[-1]:.3g}")


def test_the_picture_of_groups(tmp_path):
    """One that has no decay does not take the logarithmic axis from the others."""
    mine = parameters()
    groups = [{"params": mine[:2]}, {"params": mine[2:], "weight_decay": 0.0}]
    charts = {"lr": POSITIVE, "weight_decay": POSITIVE}
    optimizer = Hyperoptimizer(groups, AdamW(tune=("lr", "weight_decay"), charts=charts) / SGD(lr=0.1))
    history = History(optimizer)
    train(optimizer, mine, 2)
    figure = history.plot()
    figure.savefig(tmp_path / "history.png")
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.split(", ")[1] for text in texts] == ["group 0 (AdamW)"] * 2 + ["group 1 (AdamW)"] * 2


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2", None])
def test_an_interval_that_is_none(every):
    _, optimizer = halves(Hyperoptimizer, LOG)
    with pytest.raises(ValueError, match=r"every=.*it must be an integer of at least 1"):
        History(optimizer, every)


def test_another_optimizer():
    _, plain = halves(torch.optim.SGD)
    with pytest.raises(TypeError, match=r"optimizer=SGD is not allowed; it must be a Hyperoptimizer"):
        History(plain)
    with pytest.raises(TypeError, match=r"optimizer=SGD is not allowed; it must be a Hyperoptimizer"):
        current(plain)


def test_before_anything_has_been_recorded():
    mine, optimizer, history = recorded(LOG, 0)
    for use in (history.plot, lambda: history.scheduler(torch.optim.SGD(mine))):
        with pytest.raises(RuntimeError, match="nothing has been recorded"):
            use()
    assert history.records() == []
    assert current(optimizer) == {}


@pytest.mark.parametrize(("per", "count"), [("group", 2), ("tensor", 4)])
def test_a_scheduler_for_another_number_of_groups(per, count):
    mine, _, history = recorded(LOG, 1, per=per)
    with pytest.raises(ValueError, match=f"optimizer has 1 groups, which is not allowed; {count} have been recorded"):
        history.scheduler(torch.optim.SGD(mine))


# ------------------------------------------------------------------ frameworks


@pytest.mark.usefixtures("float32")
@lightning_advises
@pytest.mark.parametrize(("every", "steps"), [(None, [4, 8, 12]), (3, [3, 6, 9, 12])])
def test_lightning(tmp_path, every, steps):
    logger = CSVLogger(tmp_path)
    options = {"accumulate_grad_batches": 2, "log_every_n_steps": 4}
    callback = pickle.loads(pickle.dumps(for_lightning(every)))
    _, optimizer = fit(Module(TOWER), tmp_path, logger=logger, callbacks=[callback], **options)
    with open(logger.experiment.metrics_file_path) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == steps
    said = current(optimizer)
    assert set(said) == set(rows[-1]) - {"step"}
    assert {tag: float(rows[-1][tag]) for tag in said} == pytest.approx(said)
    assert "hyperparameters/1.Adam.beta1" in said


@pytest.mark.usefixtures("float32")
def test_hugging_face(tmp_path, lines):
    model = llama()
    optimizer = Hyperoptimizer(model.parameters(), FINE)
    history = History(optimizer)
    run = trainer(tmp_path, lines, model, steps=12, optimizers=(optimizer, None))
    run.add_callback(for_trainer(run))
    run.train()
    log = run.state.log_history
    assert [entry["step"] for entry in log if "loss" in entry] == [5, 10]
    tag = "hyperparameters/0.AdamW.lr"
    values = {r["step"]: r["value"] for r in history.records() if (r["level"], r["name"]) == (0, "lr")}
    assert [(e["step"], e[tag]) for e in log if tag in e] == [(k, pytest.approx(values[k - 1])) for k in (5, 10)]


def test_a_group_that_was_recorded_and_has_gone_is_plotted():
    mine, optimizer, history = recorded(Adam(lr=1e-3) / SGD(lr=1e-4), steps=2)
    del optimizer.param_groups[1]
    train(optimizer, mine, 2)
    assert len(history.plot().axes) == 2
    _, _, other = recorded(SGD(lr=0.1) / SGD(lr=1e-3), steps=1)
    other.load_state_dict(history.state_dict())
    assert len(other.plot().axes) == 2


def test_what_is_learned_is_logged_by_the_trainer_at_the_end_of_epochs(tmp_path, lines, float32):
    model = llama()
    optimizer = Hyperoptimizer(model.parameters(), FINE)
    run = trainer(tmp_path, lines, model, optimizers=(optimizer, None), logging_strategy="epoch")
    run.add_callback(for_trainer(run))
    run.train()
    told = [entry for entry in run.state.log_history if any("hyperparameters" in name for name in entry)]
    assert told
    assert told[-1]["step"] == run.state.global_step


@lightning_advises
def test_of_several_optimizers_that_step_now_and_then_all_are_logged(tmp_path, float32):
    """The trainer counts the steps of both: here it is odd after each batch."""

    class Two(Module):
        def configure_optimizers(self):
            return [Hyperoptimizer(self.net[i].parameters(), TOWER) for i in (0, 2)]

        def training_step(self, batch, i):
            self.log("loss", 0.0)
            for k, optimizer in enumerate(self.optimizers()):
                if i or self.current_epoch or not k:
                    optimizer.zero_grad()
                    self.manual_backward((self.net(batch[0]) - batch[1]).square().mean())
                    optimizer.step()

    logger = CSVLogger(tmp_path)
    fit(Two(TOWER, manual=True), tmp_path, logger=logger, callbacks=[for_lightning()], log_every_n_steps=4)
    with open(logger.experiment.metrics_file_path) as file:
        rows = list(csv.DictReader(file))
    for name in ("hyperparameters/0.Adam.lr", "hyperparameters/0.Adam.lr.optimizer1"):
        assert [int(row["step"]) for row in rows if row.get(name)] == list(range(5, 46, 4))


@pytest.mark.parametrize("closed", [False, True])
def test_a_copy_records_the_steps_of_its_copy(closed):
    params = parameters()
    optimizer = Hyperoptimizer(params, Adam() / SGD(lr=1e-5))
    history = History(optimizer)
    train(optimizer, params, 2)
    if closed:
        history.close()
    theirs, twin, copied = copy.deepcopy((params, optimizer, history))
    train(twin, theirs, 3, 2)
    assert {r["step"] for r in copied.records()} == {*range(2 if closed else 5)}
    assert {r["step"] for r in history.records()} == {0, 1}
