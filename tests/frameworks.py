"""What the tests of other people's training loops share: a regression, Lightning around it, a small Llama under a Trainer."""

import sys
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer

TOWER = Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=1e-5)
LOG = AdamW(lr=1e-3, tune="lr", charts={"lr": POSITIVE}, horizon=20, normalize="cosine") / SGD(lr=0.1)
FINE = AdamW(lr=3e-3, tune="lr", charts={"lr": POSITIVE}, horizon=20, normalize="cosine") / SGD(lr=0.05)
"""For the Llama."""

# advice about the number of workers and of batches, and Lightning's own use of what torch 2.13 deprecates
lightning_advises = pytest.mark.filterwarnings(
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def batches():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.sin(2 * x[:, :2])), batch_size=8)


def warm_up(optimizer):
    """A schedule over the first four steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 4))


# -------------------------------------------------------------------- Lightning


class Module(pl.LightningModule):
    """The regression; `losses` are for the tests."""

    def __init__(self, tower, manual=False):
        super().__init__()
        self.net = network()
        self.tower, self.losses = tower, []
        self.automatic_optimization = not manual

    def training_step(self, batch):
        x, y = batch
        loss = (self.net(x.to(self.net[0].weight.dtype)).float() - y).square().mean()
        self.losses.append(loss.item())
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 1.0, "norm")
        optimizer.step()
        self.lr_schedulers().step()
        return None

    def configure_optimizers(self):
        optimizer = Hyperoptimizer(self.parameters(), self.tower)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up(optimizer), "interval": "step"}}


def fit(module, folder, epochs=3, ckpt_path=None, **options):
    """The trainer, and its optimizer."""
    settings = {"logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, batches(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer, trainer.optimizers[0]


# ----------------------------------------------------------------- Hugging Face


class Lines(Dataset):
    def __init__(self, lines):
        self.lines = lines

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, i):
        return {"input_ids": self.lines[i], "labels": self.lines[i]}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, use_cache=False
    )
    return transformers.LlamaForCausalLM(config)


def trainer(folder, lines, model=None, steps=30, kind=transformers.Trainer, **options):
    own = {n: options.pop(n) for n in ("optimizers", "optimizer_cls_and_kwargs", "callbacks") if n in options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=5,
        **{"save_strategy": "no", **options},
    )
    return kind(model=model or llama(), args=arguments, train_dataset=Lines(lines), eval_dataset=Lines(lines[:16]), **own)


class Anything(type):
    """A class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class NoTorchvision(MetaPathFinder, Loader):
    """timm's datasets and transforms import torchvision, which PyPI does not have for torch's CPU build; none is used here."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        def found(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

        module.__getattr__ = found


@contextmanager
def without_torchvision():
    """To import timm in."""
    sys.meta_path.insert(0, NoTorchvision())
    try:
        yield
    finally:
        del sys.meta_path[0]
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
