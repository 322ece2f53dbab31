"""Nine scripts of others: models and recipes restated, on the data of the other experiments, and shorter. All on the CPU."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from math import cos, exp, inf, pi
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, mse_loss, pad
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import update_bn

from hypergradient import Hyperoptimizer

from . import data, models
from .sensitivity_tasks import Attention, residual
from .tasks import TASKS, Batch, Entry, generator, shuffled

Make = Callable[[nn.Module], Optimizer]
"""The one line."""


class Script:
    """A script: what it trains, how its author does it, and how it is tested.

    Attributes:
        measure: what the test measures.
        steps: how long a training is here.
        clip: the norm that gradients are clipped to.
        epoch: how many steps it is between two calls of what `schedule` returns.
        rows: how many samples are tested on.
    """

    measure: ClassVar[str] = "test loss"
    steps: ClassVar[int] = 400
    clip: ClassVar[float] = inf
    epoch: ClassVar[int] = 1
    rows: int = 5000

    def model(self) -> nn.Module:
        """Untrained, of the present seed of torch."""
        raise NotImplementedError

    def author(self, model: nn.Module) -> Optimizer:
        """The line that is changed."""
        raise NotImplementedError

    def schedule(self, optimizer: Optimizer, model: nn.Module, steps: int) -> Callable[[int], None] | None:
        """What is called after every epoch with the number of epochs so far."""
        return None

    def batch(self, seed: int, step: int) -> Batch:
        """What step 0, 1, 2, … is trained on."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What is minimized."""
        raise NotImplementedError

    def test(self, model: nn.Module) -> float:
        """Less is better. The model is in evaluation mode."""
        raise NotImplementedError

    def train(self, model: nn.Module, make: Make, seed: int, steps: int) -> None:
        """The loop."""
        optimizer = make(model)
        schedule = self.schedule(optimizer, model, steps)
        for step in range(steps):
            optimizer.zero_grad()
            self.loss(model, self.batch(seed, step)).backward()
            if self.clip < inf:
                clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            if schedule and (step + 1) % self.epoch == 0:
                schedule((step + 1) // self.epoch)

    @torch.no_grad()
    def tested(self, model: nn.Module) -> float:
        """The test, after which training goes on."""
        model.eval()
        found = self.test(model)
        model.train()
        return found

    def at_average(self, model: nn.Module, optimizers: list[Optimizer], seed: int) -> float:
        """The test between `eval()` and `train()`, with batch-norm statistics anew, of 20 batches."""
        for optimizer in optimizers:
            optimizer.eval()
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            self.anew(model, seed)
        found = self.tested(model)
        for optimizer in optimizers:
            optimizer.train()
        return found

    def anew(self, model: nn.Module, seed: int) -> None:
        """Take batch-norm statistics anew."""
        update_bn((self.batch(seed, step)[0] for step in range(20)), model)


# ------------------------------------------------------------------ pytorch/examples


class Digits(Script):
    """mnist/main.py: Adadelta at 1.0, times 0.7 after every epoch, which has 75 steps here and 938 there."""

    steps, epoch = 450, 75

    def __init__(self) -> None:
        self.data = data.mnist()

    def model(self) -> nn.Module:
        convolutions = nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adadelta(model.parameters(), lr=1.0)

    def schedule(self, optimizer: Optimizer, model: nn.Module, steps: int) -> Callable[[int], None]:
        scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
        return lambda epoch: scheduler.step()

    def batch(self, seed: int, step: int) -> Batch:
        chosen = shuffled(len(self.data.y), 64, seed, step)
        return self.normal(self.data.x[chosen]), self.data.y[chosen]

    def normal(self, x: Tensor) -> Tensor:
        return (x / 255 - 0.1307) / 0.3081

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    def test(self, model: nn.Module) -> float:
        x, y = self.data.test_x[: self.rows], self.data.test_y[: self.rows]
        outputs = torch.cat([model(self.normal(part)) for part in x.split(1000)])
        return cross_entropy(outputs, y).item()


class VAE(nn.Module):
    """784–400–20–400–784."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.code = nn.Sequential(nn.Linear(784, 400), nn.ReLU()), nn.Linear(400, 40)
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the pixels, and mean and log variance of the code."""
        mean, variance = self.code(self.encoder(x)).chunk(2, dim=1)
        return self.decoder(mean + (variance / 2).exp() * torch.randn_like(mean)), mean, variance


class Variational(Script):
    """vae/main.py: Adam at 1e-3, 10 epochs of 469 batches of 128, the loss summed over pixels and images."""

    measure = "loss per image"
    steps, rows = 4690, 10_000

    def __init__(self) -> None:
        self.data = data.mnist()

    def model(self) -> nn.Module:
        return VAE()

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam(model.parameters(), lr=1e-3)

    def batch(self, seed: int, step: int) -> Batch:
        x = self.data.x[shuffled(len(self.data.y), 128, seed, step)].flatten(1) / 255
        return x, x

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, mean, variance = model(batch[0])
        divergence = (1 + variance - mean.square() - variance.exp()).sum() / -2
        return binary_cross_entropy_with_logits(logits, batch[1], reduction="sum") + divergence

    def test(self, model: nn.Module) -> float:
        x = self.data.test_x[: self.rows].flatten(1) / 255
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return sum(self.loss(model, (part, part)).item() for part in x.split(1000)) / len(x)


class WordLSTM(nn.Module):
    """Two layers of LSTM over an embedding of words; the state goes on from batch to batch while training."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(words, 200), nn.LSTM(200, 200, num_layers=2, dropout=0.2)
        self.head, self.drop = nn.Linear(200, words), nn.Dropout(0.2)
        for weight in (self.embedding.weight, self.head.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (time, batch) to (time, batch, words)."""
        state = None if self.state is None else tuple(part.detach() for part in self.state)
        output, self.state = self.lstm(self.drop(self.embedding(x)), state)
        return self.head(self.drop(output))


class Words(Script):
    """word_language_model/main.py: steps of 20 along the gradient, whose norm is clipped at 0.25; a quarter of that when the
    validation loss has not fallen. Words that occur less than ten times are one; there is a validation every 100 steps.
    """

    measure = "perplexity"
    steps, clip, epoch = 500, 0.25, 100

    def __init__(self) -> None:
        words = re.findall(r"\w+|[^\w\s]|\n", data.find("text").read_text(encoding="utf-8"))
        counts = Counter(words)
        known = {word: i + 1 for i, word in enumerate(sorted(word for word, count in counts.items() if count >= 10))}
        self.words = 1 + len(known)
        codes = torch.tensor([known.get(word, 0) for word in words])
        train, valid, test = codes.tensor_split([len(codes) * 9 // 10, len(codes) * 19 // 20])
        self.columns, self.valid, self.held = (
            part[: len(part) // n * n].view(n, -1).T for part, n in ((train, 20), (valid, 10), (test, 10))
        )

    def model(self) -> nn.Module:
        return WordLSTM(self.words)

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=20)

    def schedule(self, optimizer: Optimizer, model: nn.Module, steps: int) -> Callable[[int], None]:
        scheduler = ReduceLROnPlateau(optimizer, factor=0.25, patience=0, threshold=0)

        def validate(epoch: int) -> None:
            averages = isinstance(optimizer, Hyperoptimizer)
            scheduler.step(self.at_average(model, [optimizer], 0) if averages else self.tested(model))

        return validate

    def batch(self, seed: int, step: int) -> Batch:
        start = (step + 97 * seed) * 35 % (len(self.columns) - 36)
        return self.columns[start : start + 35], self.columns[start + 1 : start + 36]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return models.loss(model(batch[0]), batch[1])

    def test(self, model: nn.Module) -> float:
        """Perplexity."""
        words, state = self.now[: self.rows], model.state
        model.state = None
        pieces = zip(words[:-1].split(35), words[1:].split(35), strict=True)
        total = sum(self.loss(model, piece).item() * len(piece[0]) for piece in pieces)
        model.state = state
        return exp(min(total / (len(words) - 1), 700))

    def train(self, model: nn.Module, make: Make, seed: int, steps: int) -> None:
        self.now = self.valid
        super().train(model, make, seed, steps)
        self.now = self.held


class GAN(nn.Module):
    """Both networks of a DCGAN for 32 × 32 grey pixels, a quarter as wide as the script's and a layer less deep."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        up, down = (100, 4 * width, 2 * width, width), (width, 2 * width, 4 * width)
        generator: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(up)):
            stride, padding = (2, 1) if i else (1, 0)
            generator += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.generator = nn.Sequential(*generator, nn.ConvTranspose2d(width, 1, 4, 2, 1, bias=False), nn.Tanh())
        discriminator: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for before, after in pairwise(down):
            discriminator += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*discriminator, nn.Conv2d(4 * width, 1, 4, bias=False), nn.Flatten(0))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)


class Adversarial(Script):
    """dcgan/main.py on digits: Adam at 2e-4 with beta1 0.5 for either network, batches of 64."""

    measure = "Fréchet distance"
    steps = 800

    def __init__(self) -> None:
        self.data = data.mnist()

    def model(self) -> nn.Module:
        return GAN()

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def batch(self, seed: int, step: int) -> Batch:
        x = self.data.x[shuffled(len(self.data.y), 64, seed, step)]
        return scaled(x), x

    def train(self, model: nn.Module, make: Make, seed: int, steps: int) -> None:
        first, second = make(model.generator), make(model.discriminator)
        for step in range(steps):
            real = self.batch(seed, step)[0]
            second.zero_grad()
            self.judged(model, real, 1.0).backward()
            fake = model.generator(torch.randn(len(real), 100, 1, 1))
            self.judged(model, fake.detach(), 0.0).backward()
            second.step()
            first.zero_grad()
            self.judged(model, fake, 1.0).backward()
            first.step()

    def judged(self, model: nn.Module, x: Tensor, real: float) -> Tensor:
        """The loss of the discriminator if x were real (1) or not (0)."""
        output = model.discriminator(x)
        return binary_cross_entropy_with_logits(output, torch.full_like(output, real))

    def anew(self, model: nn.Module, seed: int) -> None:
        """Images are made in training mode, as in the script."""

    def test(self, model: nn.Module) -> float:
        """The Fréchet distance of features of samples from those of test images."""
        made = generator(0)
        model.train()
        with torch.random.fork_rng():
            buffers = [buffer.clone() for buffer in model.buffers()]
            samples = torch.cat([model.generator(torch.randn(100, 100, 1, 1, generator=made)) for _ in range(self.rows // 100)])
            for buffer, old in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(old)
        classifier = judge()
        return frechet(*(classifier[:-1](x).double() for x in (samples, scaled(self.data.test_x[: self.rows]))))


def scaled(x: Tensor) -> Tensor:
    """Digits as numbers in [-1, 1], of 32 × 32."""
    return pad(x, (2, 2, 2, 2)).float() / 127.5 - 1


@cache
def judge() -> nn.Sequential:
    """A classifier of digits after 300 steps of Adam, the same every time; its features are what its last layer is given."""
    script = Adversarial()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        model = nn.Sequential(*layers, nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with torch.enable_grad():
        for step in range(300):
            chosen = shuffled(len(script.data.y), 64, 0, step)
            optimizer.zero_grad()
            cross_entropy(model(scaled(script.data.x[chosen])), script.data.y[chosen]).backward()
            optimizer.step()
    return model.requires_grad_(False)


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance of two normal distributions with the means and covariances of these rows."""
    if not a.isfinite().all():
        return inf
    values, vectors = torch.linalg.eigh(a.T.cov())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp_min(0).sqrt().sum()
    return ((a.mean(dim=0) - b.mean(dim=0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * cross).item()


class Enlarged(Script):
    """super_resolution/main.py with the arguments of its README but batches of 64: Adam at 1e-3; thrice the width and height,
    on the luminance of 30 × 30 pixels of images of CIFAR-10.
    """

    measure = "squared error × 1000"
    steps = 1000

    def __init__(self) -> None:
        self.data = data.cifar10()

    def model(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(1, 64, 5, padding=2), nn.ReLU()]
        for before, after in ((64, 64), (64, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3))
        for layer in model[:-2]:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("relu"))
        nn.init.orthogonal_(model[-2].weight)
        return model

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam(model.parameters(), lr=1e-3)

    def batch(self, seed: int, step: int) -> Batch:
        return self.pair(self.data.x[shuffled(len(self.data.y), 64, seed, step)])

    def pair(self, x: Tensor) -> Batch:
        """Small, and large."""
        luminance = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) / 255
        y = (x[..., 1:31, 1:31] * luminance).sum(dim=1, keepdim=True)
        return interpolate(y, size=10, mode="bilinear", antialias=True), y

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mse_loss(model(batch[0]), batch[1])

    def test(self, model: nn.Module) -> float:
        """Mean squared error, in thousandths."""
        parts = self.data.test_x[: self.rows].split(100)
        return 1000 * sum(self.loss(model, self.pair(part)).item() for part in parts) / len(parts)


# ---------------------------------------------------------------------------- others


class NanoGPT(nn.Module):
    """A transformer without biases, the embedding tied to the last layer."""

    def __init__(self, vocabulary: int, length: int = 64, width: int = 128, heads: int = 4, blocks: int = 4) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(blocks)), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith((".out", "layers.2"))
                nn.init.normal_(module.weight, 0, 0.02 / (2 * blocks) ** 0.5 if last else 0.02)
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.bias = None
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x) + self.position.weight[: x.shape[1]]))


class Characters(Script):
    """nanoGPT, config/train_shakespeare_char.py in the size that its README has for a CPU: AdamW at 1e-3 with beta2 0.99 and a
    decay of 0.1 on matrices, gradients clipped at 1, batches of 12 × 64 characters; the loop sets the lr: 100 steps of warm-up,
    then a cosine to 1e-4 over 1,000 steps (2,000 there).
    """

    steps, clip, rows = 1000, 1.0, 2000

    def __init__(self) -> None:
        self.data = data.text()

    def model(self) -> nn.Module:
        return NanoGPT(self.data.vocabulary)

    def author(self, model: nn.Module) -> Optimizer:
        matrices, others = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def schedule(self, optimizer: Optimizer, model: nn.Module, steps: int) -> Callable[[int], None]:
        rise = min(100, steps // 10)

        def write(made: int) -> None:
            part = (made - rise) / max(1, steps - rise)
            lr = 1e-3 * (made + 1) / (rise + 1) if made < rise else 1e-4 + 9e-4 * (1 + cos(pi * part)) / 2
            for group in optimizer.param_groups:
                group["lr"] = lr

        write(0)
        return write

    def batch(self, seed: int, step: int) -> Batch:
        return self.pieces(self.data.train, 12, generator(seed, step))

    def pieces(self, characters: Tensor, size: int, made: torch.Generator) -> Batch:
        starts = torch.randint(len(characters) - 64, (size, 1), generator=made)
        piece = characters[starts + torch.arange(65)]
        return piece[:, :-1], piece[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return models.loss(model(batch[0]), batch[1])

    def test(self, model: nn.Module) -> float:
        made = generator(0)
        parts = [self.pieces(self.data.test, 100, made) for _ in range(self.rows // 100)]
        return sum(self.loss(model, part).item() for part in parts) / len(parts)


class Trained(Characters):
    """The Trainer of transformers around a small GPT-2 of characters, with its defaults: AdamW without decay, batches of 8,
    gradients clipped at 1, the lr linear to 0 without warm-up; but from 5e-4, as the course of Hugging Face has it for training
    from scratch (5e-5, the default, is for fine-tuning).
    """

    measure = "perplexity"
    steps = 1000

    def model(self) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"vocab_size": self.data.vocabulary, "n_positions": 64, "n_embd": 128, "n_layer": 3, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False))

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)

    def train(self, model: nn.Module, make: Make, seed: int, steps: int) -> None:
        from transformers import Trainer, TrainingArguments

        rows = self.data.train[: len(self.data.train) // 64 * 64].view(-1, 64)
        samples = [{"input_ids": row, "labels": row} for row in rows]
        options = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, max_steps=steps, seed=seed, save_strategy="no", logging_strategy="no", **options
            )
            Trainer(model, arguments, train_dataset=samples, optimizers=(make(model), None)).train()

    def test(self, model: nn.Module) -> float:
        """Perplexity, as its scripts have it."""
        return exp(super().test(model))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(input_ids=batch[0], labels=batch[0]).loss


class Autoencoder(Script):
    """Lightning, the module of its README: 784–128–3–128–784 on digits, Adam at 1e-3, batches of a single image."""

    measure = "squared error × 1000"
    steps = 10_000

    def __init__(self) -> None:
        self.data = data.mnist()

    def model(self) -> nn.Module:
        layers = nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 3), nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 784)
        return nn.Sequential(*layers)

    def author(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam(model.parameters(), lr=1e-3)

    def train(self, model: nn.Module, make: Make, seed: int, steps: int) -> None:
        import lightning.pytorch as pl
        from torch.utils.data import DataLoader, TensorDataset

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = model

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                x = batch[0].flatten(1)
                return mse_loss(self.network(x), x)

            def configure_optimizers(self) -> Optimizer:
                return make(self.network)

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        images = self.data.x[shuffled(len(self.data.y), steps, seed, 0)].float() / 255
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", max_steps=steps, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            trainer.fit(Module(), DataLoader(TensorDataset(images)))

    def test(self, model: nn.Module) -> float:
        """Mean squared error, in thousandths."""
        x = self.data.test_x[: self.rows].flatten(1) / 255
        return 1000 * mse_loss(model(x), x).item()


class Timm(Script):
    """The training script of timm with its defaults, on CIFAR-10 with a ResNet-8: SGD with Nesterov's momentum 0.9 and a decay
    of 2e-5, the lr 0.1 × batch / 256, which is 0.05 for batches of 128; labels smoothed by 0.1; once per epoch its scheduler
    sets the lr: 1e-5 while it warms up, then a cosine to 0. Here an epoch has 60 steps, and one of 15 is the warm-up.
    """

    measure = "test error, %"
    steps, epoch = 900, 60

    def __init__(self) -> None:
        self.data = data.cifar10()

    def model(self) -> nn.Module:
        return residual()

    def author(self, model: nn.Module) -> Optimizer:
        matrices, others = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
        groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 2e-5}]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)

    def schedule(self, optimizer: Optimizer, model: nn.Module, steps: int) -> Callable[[int], None]:
        bases = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        epochs, rise, least = max(2, steps // self.epoch), 1, 1e-5

        def write(epoch: int) -> None:
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                warm = least + epoch * (base - least) / rise
                group["lr"] = warm if epoch < rise else base * (1 + cos(pi * epoch / epochs)) / 2

        write(0)
        return write

    def batch(self, seed: int, step: int) -> Batch:
        chosen = shuffled(len(self.data.y), 128, seed, step)
        x = self.data.x[chosen]
        mirrored = torch.rand(len(x), 1, 1, 1, generator=generator(seed, step, 1)) < 0.5
        return torch.where(mirrored, x.flip(-1), x), self.data.y[chosen]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    def test(self, model: nn.Module) -> float:
        """Wrong answers in percent."""
        answers = torch.cat([model(part).argmax(dim=1) for part in self.data.test_x[: self.rows].split(500)])
        return 100 * (answers != self.data.test_y[: self.rows]).float().mean().item()


SCRIPTS: dict[str, tuple[str, type[Script]]] = {
    "pytorch/examples mnist": ("mnist", Digits),
    "pytorch/examples vae": ("mnist", Variational),
    "pytorch/examples word_language_model": ("text", Words),
    "pytorch/examples dcgan": ("mnist", Adversarial),
    "pytorch/examples super_resolution": ("cifar10", Enlarged),
    "nanoGPT": ("text", Characters),
    "transformers Trainer": ("text", Trained),
    "Lightning": ("mnist", Autoencoder),
    "timm": ("cifar10", Timm),
}
"""By name: the data, and the script."""
TASKS.update({name: Entry(file, partial(lambda script, device: script(), script)) for name, (file, script) in SCRIPTS.items()})
