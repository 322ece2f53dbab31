"""timm: its loop with scaler, clipping, EMA and checkpoints; its schedules; its groups with a step size per layer."""

import copy

import pytest
import torch
from frameworks import without_torchvision
from helpers import EVERY
from torch import nn

from hypergradient import POSITIVE, SGD, AdamW, Hyperoptimizer

with without_torchvision():
    from timm import create_model
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler

pytestmark = pytest.mark.usefixtures("float32")

LOG = AdamW(lr=1e-3, tune="lr", charts={"lr": POSITIVE}, horizon=20, normalize="cosine") / SGD(lr=0.1)
MAKERS = {"default": Hyperoptimizer, "tower": lambda ps: Hyperoptimizer(ps, LOG)}
EPOCHS, UPDATES = 3, 6


def vit():
    torch.manual_seed(0)
    return create_model("vit_tiny_patch16_224", num_classes=3, img_size=16, patch_size=8, depth=2, embed_dim=16, num_heads=2)


def images(epoch):
    """Batches of images whose label is the colour that prevails."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(UPDATES):
        y = torch.randint(3, (16,), generator=generator)
        x = torch.randn(16, 3, 16, 16, generator=generator)
        x[torch.arange(16), y] += 1.0
        yield x, y


class Run:
    """What timm's train.py holds, and its epochs."""

    def __init__(self, make, groups=lambda m: param_groups_weight_decay(m, 0.05), sched="cosine", **schedule):
        self.model = vit()
        self.optimizer, self.ema, self.scaler = make(groups(self.model)), ModelEmaV3(self.model, 0.9), NativeScaler("cpu")
        how = {"num_epochs": 50, "warmup_epochs": 1, "warmup_lr": 1e-7, "step_on_epochs": False, **schedule}
        self.schedule, _ = create_scheduler_v2(self.optimizer, sched, updates_per_epoch=UPDATES, **how)
        self.losses, self.rates = [], []

    def epoch(self, epoch):
        for batch, (x, y) in enumerate(images(epoch)):
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.scaler(loss, self.optimizer, clip_grad=1.0, parameters=self.model.parameters())
            self.optimizer.zero_grad()
            updates = epoch * UPDATES + batch + 1
            self.ema.update(self.model, step=updates)
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
            self.schedule.step_update(num_updates=updates, metric=loss.item())
            self.losses.append(loss.item())
        self.schedule.step(epoch + 1, loss.item())

    def train(self, start=0, end=EPOCHS):
        for epoch in range(start, end):
            self.epoch(epoch)
        return self

    @property
    def weights(self):
        return [*self.model.parameters(), *self.ema.module.parameters()]


SHORT = {"num_epochs": EPOCHS}
SCHEDULES = {
    "cosine": SHORT,
    "cosine, cycles": {"sched": "cosine", "cycle_limit": 3, "cycle_decay": 0.5, "num_epochs": 1, "warmup_epochs": 0},
    "tanh": SHORT,
    "step": {"decay_epochs": 1, "step_on_epochs": True},
    "multistep": {"decay_milestones": [1, 2], "step_on_epochs": True},
    "poly": SHORT,
    "plateau": {"patience_epochs": 0, "step_on_epochs": True, "warmup_epochs": 0},
    "wsd": {**SHORT, "decay_epochs": 1},
    "rsqrt": {**SHORT, "decay_epochs": 1},
    "constant": {},
}


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize(("sched", "how"), [*SCHEDULES.items()][:: min(EVERY, 3)], ids=[*SCHEDULES][:: min(EVERY, 3)])
def test_its_loop_is_as_with_torch_when_nothing_is_learned(sched, how):
    """Weights, their EMA and every group's lr; each layer has its share of the lr."""
    how = {"sched": sched.split(",")[0], "groups": lambda m: param_groups_layer_decay(m, 0.05, layer_decay=0.5), **how}
    one = Run(lambda ps: Hyperoptimizer(ps, AdamW(lr=3e-3) / SGD(lr=0.0)), **how).train()
    other = Run(lambda ps: torch.optim.AdamW(ps, lr=3e-3), **how).train()
    assert one.rates == other.rates
    assert len({rates[-1] for rates in one.rates}) > 1 or sched == "plateau"
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_its_loop_with_what_is_learned(make):
    """The same bits as a plain loop with a scheduler of torch of the same shape; and it learns."""
    one = Run(make, sched="constant", warmup_epochs=0).train(end=10)
    model, losses = vit(), []
    optimizer = make(param_groups_weight_decay(model, 0.05))
    for epoch in range(10):
        for x, y in images(epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            (loss * 65536.0).backward()
            for p in model.parameters():
                p.grad /= 65536.0
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    assert one.losses == losses
    assert sum(losses[-UPDATES:]) < 0.9 * sum(losses[:UPDATES])
    torch.testing.assert_close(list(one.model.parameters()), list(model.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_layers_keep_their_share_of_the_step_size(make):
    """Of ``layer_decay``: what is in force of two groups that learn alike is as ``lr_scale`` says."""
    run = Run(make, lambda m: param_groups_layer_decay(m, 0.05, layer_decay=0.5))
    first = [run.optimizer.hyperparameters(i)[0]["lr"] for i in range(len(run.optimizer.param_groups))]
    scales = [group["lr_scale"] for group in run.optimizer.param_groups]
    assert min(scales) < 0.2
    assert [x / first[-1] for x in first] == pytest.approx(scales)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_its_checkpoint_resumes_to_the_last_bit(tmp_path, make):
    """Saved after validation at the average, which a run without an interruption leaves again, too."""
    whole = Run(make).train(end=2)
    saver = CheckpointSaver(
        whole.model, whole.optimizer, model_ema=whole.ema, amp_scaler=whole.scaler, checkpoint_dir=tmp_path, decreasing=True
    )
    whole.optimizer.eval()
    saver.save_checkpoint(1, metric=1.0)
    whole.optimizer.train()
    again = Run(make)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    again.model.load_state_dict(saved["state_dict"])
    again.ema.module.load_state_dict(saved["state_dict_ema"])
    again.optimizer.load_state_dict(saved["optimizer"])
    again.scaler.load_state_dict(saved["amp_scaler"])
    again.schedule.step_update(2 * UPDATES)
    again.optimizer.train()
    for run in (whole, again):
        run.train(2)
    assert again.losses == whole.losses[2 * UPDATES :]
    torch.testing.assert_close(again.weights, whole.weights, rtol=0, atol=0)
    assert again.optimizer.hyperparameters() == whole.optimizer.hyperparameters()


def test_the_ema_is_of_the_weights_of_training():
    """As it would be of those of a loop that never validates: evaluation in between does not reach it."""
    runs = [Run(Hyperoptimizer), Run(Hyperoptimizer)]
    for epoch in range(EPOCHS):
        for run, validates in zip(runs, (True, False), strict=True):
            run.epoch(epoch)
            if validates:
                before = copy.deepcopy(run.weights)
                run.optimizer.eval()
                assert not all(torch.equal(p, x) for p, x in zip(run.weights, before, strict=True))
                run.optimizer.train()
    torch.testing.assert_close(*(run.weights for run in runs), rtol=0, atol=0)


def test_its_usual_warm_up_does_not_stop_the_default():
    """timm's own default for the lr that a warm-up starts from is 1e-5, ten times where the default begins."""
    run = Run(Hyperoptimizer, warmup_epochs=5, warmup_lr=1e-5).train(end=20)
    assert sum(run.losses[-UPDATES:]) < 0.5 * sum(run.losses[:UPDATES])
