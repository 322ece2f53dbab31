"""Lightning: automatic and manual optimization, precisions, its monitor and its checkpoints."""

import csv

import pytest
import torch
from frameworks import LOG, TOWER, Module, batches, fit, lightning_advises
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from hypergradient import SGD, AdamWScheduleFree, Hyperoptimizer, auto
from hypergradient.callbacks import current, for_lightning

pytestmark = [pytest.mark.usefixtures("float32"), lightning_advises]


def by_hand(tower, epochs=3):
    """The same training as a loop: losses, hyperparameters, weights."""
    module = Module(tower)
    settings = module.configure_optimizers()
    optimizer, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    for _ in range(epochs):
        for batch in batches():
            optimizer.zero_grad()
            module.training_step(batch).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return module.losses, optimizer.hyperparameters(), list(module.parameters())


@pytest.mark.parametrize("tower", [TOWER, LOG], ids=repr)
def test_automatic_optimization(tmp_path, tower):
    """Forward, zero_grad and backward inside a closure: the same bits as a loop by hand."""
    module = Module(tower)
    _, optimizer = fit(module, tmp_path, gradient_clip_val=1.0)
    assert type(optimizer) is Hyperoptimizer
    losses, learned, weights = by_hand(tower)
    assert module.losses == losses
    assert optimizer.hyperparameters() == learned
    torch.testing.assert_close(list(module.parameters()), weights, rtol=0, atol=0)


@pytest.mark.parametrize("tower", [TOWER, LOG], ids=repr)
def test_manual_optimization(tmp_path, tower):
    module = Module(tower, manual=True)
    _, optimizer = fit(module, tmp_path)
    losses, learned, weights = by_hand(tower)
    assert module.losses == losses
    assert optimizer.hyperparameters() == learned
    torch.testing.assert_close(list(module.parameters()), weights, rtol=0, atol=0)


def learns(module):
    assert sum(module.losses[-8:]) < 0.8 * sum(module.losses[:8])


# the very first step is one that is skipped
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`")
@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_precision_mixed(tmp_path, precision, manual):
    """16-mixed by its plugin, for Lightning itself would take bfloat16 on a CPU: with a scaler, and a step it skips."""
    module = Module(LOG, manual=manual)
    plugin = MixedPrecision(precision, "cpu")
    if plugin.scaler is not None:
        plugin.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)  # too high: the first steps are skipped
    _, optimizer = fit(module, tmp_path, epochs=20, plugins=[plugin], **({} if manual else {"gradient_clip_val": 1.0}))
    learns(module)
    assert optimizer.hyperparameters()[0]["lr"] > 2e-3
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    made = int(optimizer.state[module.net[0].weight]["step"])
    assert (made < 160) == (precision == "16-mixed")


def test_precision_of_parameters_in_bfloat16(tmp_path):
    module = Module(LOG)
    _, optimizer = fit(module, tmp_path, epochs=20, precision="bf16-true")
    learns(module)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in optimizer.state[module.net[0].weight].values()} == {torch.float32}


def test_learning_rate_monitor(tmp_path):
    module = Module(TOWER)
    logger = CSVLogger(tmp_path)
    fit(module, tmp_path, logger=logger, callbacks=[LearningRateMonitor("step", log_weight_decay=True)], log_every_n_steps=1)
    with open(logger.experiment.metrics_file_path) as file:
        rows = list(csv.DictReader(file))
    said = [float(row["lr-Hyperoptimizer"]) for row in rows]
    assert said[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert {float(row["lr-Hyperoptimizer-weight_decay"]) for row in rows} == {0.0}


def test_learning_rate_monitor_of_the_momentum(tmp_path):
    module = Module(TOWER)
    logger = CSVLogger(tmp_path)
    fit(module, tmp_path, logger=logger, callbacks=[LearningRateMonitor("step", log_momentum=True)], log_every_n_steps=1)
    with open(logger.experiment.metrics_file_path) as file:
        assert {float(row["lr-Hyperoptimizer-momentum"]) for row in csv.DictReader(file)} == {0.9}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it is that of the first run
@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("tower", [TOWER, LOG], ids=repr)
def test_resume(tmp_path, tower, manual):
    """From Lightning's checkpoint, to the last bit."""
    whole, again = Module(tower, manual), Module(tower, manual)
    options = {"enable_checkpointing": True, **({} if manual else {"gradient_clip_val": 1.0})}

    def saving():
        return {"callbacks": [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)], **options}

    _, one = fit(whole, tmp_path, 4, **saving())
    _, other = fit(again, tmp_path, 4, ckpt_path=str(tmp_path / "epoch=1.ckpt"), **saving())
    assert again.losses == whole.losses[16:]
    assert other.hyperparameters() == one.hyperparameters()
    assert other.hypergradients() == one.hypergradients()
    torch.testing.assert_close(list(again.parameters()), list(whole.parameters()), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")  # the schedule moves every step
def test_its_weight_averaging_and_accumulation(tmp_path):
    module = Module(TOWER)
    averaging = StochasticWeightAveraging(swa_lrs=0.005, swa_epoch_start=2, annealing_epochs=1)
    fit(module, tmp_path, epochs=10, callbacks=[averaging], accumulate_grad_batches=2)
    learns(module)


class AtTheAverage(Callback):
    """What a script adds for a rule that averages, for Lightning does not call ``eval`` and ``train``."""

    def on_train_epoch_end(self, trainer, module):
        trainer.optimizers[0].eval()
        module.seen.append([p.detach().clone() for p in module.parameters()])

    def on_train_epoch_start(self, trainer, module):
        trainer.optimizers[0].train()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("manual", [False, True])
def test_the_default_is_evaluated_at_its_average_and_resumed(tmp_path, manual):
    """The weights of a loop by hand, their average after each epoch, and both again from a checkpoint of the second."""
    runs = [Module(auto(), manual), Module(auto(), manual)]
    for module, ckpt_path in zip(runs, (None, str(tmp_path / "epoch=1.ckpt")), strict=True):
        module.seen = []
        callbacks = [AtTheAverage(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)]
        options = {} if manual else {"gradient_clip_val": 1.0}
        _, optimizer = fit(module, tmp_path, 4, ckpt_path, callbacks=callbacks, enable_checkpointing=True, **options)
    losses, learned, _ = by_hand(auto(), 4)
    assert [*runs[0].losses[:16], *runs[1].losses] == losses == runs[0].losses
    assert optimizer.hyperparameters() == learned
    torch.testing.assert_close(runs[1].seen, runs[0].seen[2:], rtol=0, atol=0)


@pytest.mark.parametrize("tower", [auto(), LOG], ids=["default", "tower"])
def test_accumulation_is_a_plain_loop(tmp_path, tower):
    """``accumulate_grad_batches=3``: the same bits, with the short window at the end of an epoch."""
    module, twin = Module(tower), Module(tower)
    _, optimizer = fit(module, tmp_path, accumulate_grad_batches=3)
    settings = twin.configure_optimizers()
    other, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    for _ in range(3):
        for i, batch in enumerate(batches(), 1):
            (twin.training_step(batch) / 3).backward()
            if i in (3, 6, 8):
                other.step()
                schedule.step()
                other.zero_grad()
    assert module.losses == twin.losses
    assert optimizer.hyperparameters() == other.hyperparameters()
    torch.testing.assert_close(list(module.parameters()), list(twin.parameters()), rtol=0, atol=0)


def looked_at(fabric, look):
    """A training with `tune_on`, in which the optimizer is looked at before the first step and later: what it then says."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    optimizer = Hyperoptimizer(model.parameters(), AdamWScheduleFree(lr=1e-2, tune=("lr", "beta1")) / SGD(lr=1e-3))
    if fabric:
        model, optimizer = Fabric(accelerator="cpu", devices=1).setup(model, optimizer)
    for step in range(12):
        if step in (0, 6):
            look(optimizer)
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.tune_on((model(x) - 1).square().mean())
        optimizer.step()
    told = optimizer.hyperparameters(), optimizer.hypergradients(), repr(optimizer), optimizer.made(), current(optimizer)
    optimizer.eval()
    return told, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "look",
    [
        lambda o: None,
        repr,
        Hyperoptimizer.hyperparameters,
        Hyperoptimizer.snapshot,
        lambda o: (o.eval(), o.train()),
        lambda o: o.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
    ],
    ids=["at no time", "print", "hyperparameters", "snapshot", "eval and train", "add_param_group"],
)
def test_a_wrapper_says_and_does_what_the_optimizer_in_it_would(look):
    """Fabric's, like Lightning's, is of the optimizer's class, and reads from it what it has not itself."""
    plain, wrapped = (looked_at(fabric, look) for fabric in (False, True))
    assert plain[0] == wrapped[0]
    torch.testing.assert_close(plain[1], wrapped[1], rtol=0, atol=0)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "10"])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match=rf"every={every!r} is not allowed; it must be an integer of at least 1"):
        for_lightning(every)
