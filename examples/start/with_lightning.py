"""Lightning, automatic optimization."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from hypergradient import Hyperoptimizer
from hypergradient.callbacks import for_lightning


class Digits(pl.LightningModule):
    """A small network."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))

    def configure_optimizers(self):
        return Hyperoptimizer(self.parameters())

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("error", (self.net(x).argmax(1) != y).float().mean(), prog_bar=True)

    def on_validation_model_eval(self):  # Lightning does not call the optimizer's eval and train by itself
        super().on_validation_model_eval()
        if self.trainer.state.fn == "fit":  # elsewhere the weights are those of a checkpoint, or of the last epoch's average
            for optimizer in self.trainer.optimizers:
                optimizer.eval()

    def on_train_batch_start(self, batch, batch_idx):  # not before: checkpoints are of the weights that were evaluated
        for optimizer in self.trainer.optimizers:
            optimizer.train()


images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
train, test = torch.utils.data.random_split(data, [1437, 360], torch.Generator().manual_seed(0))

pl.seed_everything(0)
module = Digits()
trainer = pl.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[for_lightning()])
trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=360))

optimizer = trainer.optimizers[0]
print(optimizer)
