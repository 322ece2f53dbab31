"""Small tasks of many kinds, of which 600 steps take seconds.

As in `tasks`, the batch of a step depends on the seed and the step alone; in the place of `test` there is `measure`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, scaled_dot_product_attention

from . import data, models
from .tasks import TASKS, Batch, Entry, cropped, generator, shuffled

HELD_OUT = ("cnn-fashion", "lstm-text", "vit-cifar10", "reversing")
"""What nothing was tuned on."""
SMALL = ("regression", "mlp-mnist", "finetune-cifar10")
"""Data that are few, or seen many times: on these the default is tuned on a part of them, too."""
LONG = ("mlp-mnist", "gpt-text", "cnn-cifar10", "logistic-mnist", "autoencoder-mnist")
"""What is trained for 6000 steps, too."""


class Measure(NamedTuple):
    """How good a model is: its loss on a part of what it was trained on, its loss on other data, and its errors there in %."""

    train: float
    loss: float
    error: float | None


@dataclass
class Supervised:
    """A model, and rows of inputs and of what it shall answer.

    Args:
        build: makes the model.
        train: inputs and targets to train on.
        held: others.
        size: of a batch.
        criterion: the mean loss of outputs and targets.
        classes: whether targets are classes, so that answers are right or wrong.
        flips: whether images are mirrored at random; `crops`: and cropped from a border of 4.
    """

    build: Callable[[], nn.Module]
    train: Batch
    held: Batch
    size: int = 64
    criterion: Callable[[Tensor, Tensor], Tensor] = models.loss
    classes: bool = True
    flips: bool = False
    crops: bool = False

    def model(self) -> nn.Module:
        return self.build()

    def batch(self, seed: int, step: int) -> Batch:
        chosen = shuffled(len(self.train[0]), self.size, seed, step).to(self.train[0].device)
        x, y = (rows[chosen] for rows in self.train)
        if self.crops:
            x = cropped(x, generator(seed, step, 1))
        elif self.flips:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator(seed, step, 1)) < 0.5
            x = torch.where(mirrored.to(x.device), x.flip(-1), x)
        return x, y

    def parted(self) -> tuple[Supervised, Supervised]:
        """Of what there is to train on, a fifth, chosen at random, and the rest before it."""
        x, y = self.train
        rows = torch.randperm(len(x), generator=generator(0)).to(x.device)
        rest, fifth = (replace(self, train=(x[part], y[part])) for part in (rows[len(x) // 5 :], rows[: len(x) // 5]))
        return rest, fifth

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.criterion(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, rows: int = 3000) -> Measure:
        """On the first rows of either kind."""
        model.eval()
        (train, _), (loss, error) = (self._of(model, x[:rows], y[:rows]) for x, y in (self.train, self.held))
        model.train()
        return Measure(train, loss, error)

    def _of(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        loss = wrong = 0.0
        for inputs, targets in zip(x.split(500), y.split(500), strict=True):
            output = model(inputs)
            loss += self.criterion(output, targets).item() * len(inputs) / len(x)
            if self.classes:
                wrong += 100 * (output.argmax(dim=-1) != targets).float().mean().item() * len(inputs) / len(x)
        return loss, wrong if self.classes else None


class Pixels(nn.Module):
    """Bytes as numbers in [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1


class Recurrent(nn.Module):
    """A recurrent network of characters."""

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], vocabulary: int, embedding: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, embedding), nn.Linear(hidden, vocabulary)
        self.cell = cell(embedding, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.embedding(x))[0])


class Attention(nn.Module):
    """A block of a transformer: attention and two layers, each beside a shortcut and behind a norm."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.causal, self.heads, self.norm1, self.norm2 = causal, heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        return x + self.layers(self.norm2(x))


class GPT(nn.Module):
    """A transformer of characters."""

    def __init__(self, vocabulary: int, length: int, width: int = 48, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x) + self.position))


class Transformers(nn.Module):
    """One of the package transformers, as small as `GPT`; its weights begin as there, with a deviation of 0.02."""

    def __init__(self, kind: str, vocabulary: int, **sizes: int) -> None:
        import transformers

        super().__init__()
        own = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False, **sizes}
        self.model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**own))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).logits


def llama(vocabulary: int) -> nn.Module:
    """With RMS norms and gates."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Transformers("LlamaForCausalLM", vocabulary, **sizes)


def gpt2(vocabulary: int) -> nn.Module:
    """With one matrix for the embedding and the last layer, and dropout."""
    return Transformers("GPT2LMHeadModel", vocabulary, n_embd=48, n_layer=2, n_head=4, n_positions=48)


class ViT(nn.Module):
    """A transformer of patches of images, 8 × 8 each; its answer is made of the mean of all."""

    def __init__(self, width: int = 48, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, width, 8, stride=8), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Attention(width, heads, causal=False) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(patches + self.position).mean(dim=1))


class Sorter(nn.Module):
    """A transformer that says of each place of a sequence what belongs there."""

    def __init__(self, symbols: int = 12, length: int = 16, width: int = 48) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(symbols, width), nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Attention(width, 4, causal=False) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x) + self.position))


class Reverser(nn.Module):
    """A recurrent network that reads a sequence, and one that says it again, with attention to what the first has read."""

    def __init__(self, symbols: int = 12, width: int = 48) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(symbols, 32), nn.Linear(2 * width, symbols)
        self.reads, self.says = nn.GRU(32, width, batch_first=True), nn.GRU(32, width, batch_first=True)
        self.asks = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        given, said = self.embedding(x).chunk(2, dim=1)
        known, last = self.reads(given)
        state, _ = self.says(said, last)
        seen = (self.asks(state) @ known.transpose(1, 2)).softmax(dim=-1) @ known
        return self.head(torch.cat([state, seen], dim=2))


class Adder(nn.Module):
    """A recurrent network that answers at the end of a sequence."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, hidden, batch_first=True), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Factors(nn.Module):
    """The product of two matrices, as given by pairs of a row and a column."""

    def __init__(self, rows: int, columns: int, rank: int = 8) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(rows, rank), nn.Embedding(columns, rank)

    def forward(self, x: Tensor) -> Tensor:
        return (self.rows(x[:, 0]) * self.columns(x[:, 1])).sum(dim=1, keepdim=True)


class Sines(nn.Module):
    """Layers with sines between them (Sitzmann et al. 2020)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            self.layers[0].weight.mul_(10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).sin()
        return self.head(x)


def perceptron(*widths: int, norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths with ReLU, and with batch norm, between them."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for before, width in pairwise(widths[1:]):
        layers += [*[nn.BatchNorm1d(before)] * norm, nn.ReLU(), nn.Linear(before, width)]
    return nn.Sequential(*layers)


def pixels(*layers: nn.Module) -> nn.Sequential:
    """A network on images."""
    return nn.Sequential(Pixels(), nn.Flatten(), *layers)


def convolutional() -> nn.Module:
    """Three convolutions, each of half the size of the one before, and a linear layer."""
    layers: list[nn.Module] = []
    for before, width in pairwise((3, 16, 32, 32)):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(Pixels(), *layers, nn.Flatten(), nn.Linear(512, 10))


def dropping() -> nn.Module:
    """Two convolutions with pooling, two linear layers, and dropout."""
    first = nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)
    return nn.Sequential(Pixels(), *first, nn.Flatten(), nn.Linear(600, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))


def residual(classes: int = 10) -> nn.Module:
    """Eight layers with batch norm, narrow."""
    return nn.Sequential(Pixels(), models.ResNet([8, 8, 16, 32], classes=classes))


def digits(build: Callable[[], nn.Module], device: str, **options: object) -> Supervised:
    """MNIST."""
    return images(data.mnist(), build, device, **options)


def images(found: data.Images, build: Callable[[], nn.Module], device: str, **options: object) -> Supervised:
    """All images to train on, and 3,000 others."""
    x, y, test_x, test_y = (rows.to(device) for rows in (found.x, found.y, found.test_x[:3000], found.test_y[:3000]))
    return Supervised(build, (x, y), (test_x, test_y), **options)


def clothes(build: Callable[[], nn.Module], device: str) -> Supervised:
    """Fashion-MNIST."""
    return images(data.fashion(), build, device)


def objects(build: Callable[[], nn.Module], device: str, classes: range = range(10), **options: object) -> Supervised:
    """CIFAR-10, or some classes of it, which are numbered anew."""
    found = data.cifar10()
    mine, mine_too = (torch.isin(y, torch.tensor(list(classes))) for y in (found.y, found.test_y))
    y, test_y = found.y[mine] - classes.start, found.test_y[mine_too] - classes.start
    return images(data.Images(found.x[mine], y, found.test_x[mine_too], test_y), build, device, **options)


def reconstruction(device: str) -> Supervised:
    """An autoencoder of MNIST; the loss is summed over the pixels."""
    task = digits(lambda: pixels(perceptron(784, 128, 16, 128, 784)), device, classes=False)
    task.train, task.held = ((x, x) for x, _ in (task.train, task.held))

    def criterion(logits: Tensor, x: Tensor) -> Tensor:
        return 784 * binary_cross_entropy_with_logits(logits, x.flatten(1) / 255)

    task.criterion = criterion
    return task


def text(build: Callable[[int], nn.Module], device: str, length: int = 48, size: int = 32) -> Supervised:
    """War and Peace in pieces of `length` characters; each answer is the next character."""
    found, n = data.text(), length + 1
    train, held = (part[: len(part) // n * n].view(-1, n).to(device) for part in (found.train, found.test))
    pairs = ((rows[:, :-1], rows[:, 1:]) for rows in (train, held[:500]))
    return Supervised(partial(build, found.vocabulary), *pairs, size=size)


def fine_tuning(device: str) -> Supervised:
    """The residual network, trained on classes 0–4 of CIFAR-10, with a new last layer on classes 5–9."""
    weights = {name: w for name, w in pretrained(device).items() if "head" not in name}

    def build() -> nn.Module:
        model = residual(5)
        model.load_state_dict(weights, strict=False)
        return model

    return objects(build, device, range(5, 10), flips=True)


@cache
def pretrained(device: str) -> dict[str, Tensor]:
    """The weights after 400 steps of SGD, the same every time."""
    task = objects(partial(residual, 5), device, range(5), flips=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = task.model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        optimizer.zero_grad()
        task.loss(model, task.batch(0, step)).backward()
        optimizer.step()
        scheduler.step()
    return model.state_dict()


def regression(device: str) -> Supervised:
    """The course of diabetes from ten measurements of 442 patients, of whom every fourth is held out; eight hidden units."""
    found = load_diabetes()
    x, y = (torch.tensor(rows, dtype=torch.float32, device=device) for rows in (found.data, found.target[:, None]))
    held = torch.arange(len(y), device=device) % 4 == 3
    x, y = ((rows - rows[~held].mean(dim=0)) / rows[~held].std(dim=0) for rows in (x, y))
    pairs = (x[~held], y[~held]), (x[held], y[held])
    return Supervised(lambda: perceptron(10, 8, 1), *pairs, size=32, criterion=mse_loss, classes=False)


def sorting(device: str) -> Supervised:
    """Sixteen of twelve symbols, to be put in order."""
    x = torch.randint(12, (23_000, 16), generator=generator(0)).to(device)
    y = x.sort(dim=1).values
    return Supervised(Sorter, (x[3000:], y[3000:]), (x[:3000], y[:3000]), size=32)


def reversing(device: str) -> Supervised:
    """Eight of ten symbols, to be said backwards; each answer knows the right ones before it."""
    given = torch.randint(2, 12, (23_000, 8), generator=generator(0)).to(device)
    y = given.flip(1)
    x = torch.cat([given, torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)
    return Supervised(Reverser, (x[3000:], y[3000:]), (x[:3000], y[:3000]), size=32)


def adding(device: str) -> Supervised:
    """Twenty numbers in [0, 1], of which two are marked; their sum is asked for."""
    chance = generator(0)
    numbers, marks = torch.rand(23_000, 20, generator=chance), torch.zeros(23_000, 20)
    for half in (0, 10):
        marks.scatter_(1, half + torch.randint(10, (23_000, 1), generator=chance), 1.0)
    x, y = torch.stack([numbers, marks], dim=2).to(device), (numbers * marks).sum(dim=1, keepdim=True).to(device)
    return Supervised(Adder, (x[3000:], y[3000:]), (x[:3000], y[:3000]), size=32, criterion=mse_loss, classes=False)


def factorization(device: str) -> Supervised:
    """A matrix of 200 × 100 and rank 5 with noise of variance 0.01, of which 15 % is held out."""
    chance = generator(0)
    full = torch.randn(200, 5, generator=chance) @ torch.randn(5, 100, generator=chance)
    y = (full + 0.1 * torch.randn(200, 100, generator=chance)).view(-1, 1)
    x = torch.cartesian_prod(torch.arange(200), torch.arange(100))
    x, y = (rows[torch.randperm(20_000, generator=generator(1))].to(device) for rows in (x, y))
    pairs = (x[3000:], y[3000:]), (x[:3000], y[:3000])
    return Supervised(lambda: Factors(200, 100), *pairs, size=128, criterion=mse_loss, classes=False)


def sines(device: str) -> Supervised:
    """A picture of waves, all 1,024 points of it in each step; points between them are held out."""

    def points(many: int) -> Batch:
        x = torch.cartesian_prod(*2 * [torch.linspace(-1, 1, many)])
        y = torch.sin(8 * x[:, :1] + 3 * x[:, 1:] ** 2) * torch.cos(5 * x[:, 1:])
        return x.to(device), y.to(device)

    return Supervised(Sines, points(32), points(31), size=1024, criterion=mse_loss, classes=False)


class Point(nn.Module):
    """A hundred numbers."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start)


@dataclass
class Surface:
    """A function of a hundred numbers, which is its own validation.

    Args:
        function: what is minimized.
        start: makes the numbers at the beginning.
        noise: what random numbers are multiplied by, to be added to the gradient.
    """

    function: Callable[[Tensor], Tensor]
    start: Callable[[], Tensor]
    noise: Tensor

    def model(self) -> nn.Module:
        return Point(self.start())

    def batch(self, seed: int, step: int) -> Tensor:
        return self.noise @ torch.randn(100, generator=generator(seed, step)).to(self.noise)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return self.function(model.w) + batch @ model.w

    @torch.no_grad()
    def measure(self, model: nn.Module, rows: int = 0) -> Measure:
        loss = self.function(model.w).item()
        return Measure(loss, loss, None)


def quadratic(device: str) -> Surface:
    """Curvatures from 1 to 1e-4 in directions of no coordinate, and noise of the covariance of the Hessian."""
    turned, _ = torch.linalg.qr(torch.randn(100, 100, generator=generator(0), dtype=torch.float64))
    root = (turned * torch.logspace(0, -2, 100, dtype=torch.float64)).float().to(device)
    return Surface(lambda w: (root.T @ w).square().sum() / 2, lambda: torch.randn(100), root)


def rosenbrock(device: str) -> Surface:
    """Rosenbrock's valley, from near its usual start, without noise."""

    def function(w: Tensor) -> Tensor:
        return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()

    return Surface(
        function, lambda: torch.tensor([-1.2, 1.0]).repeat(50) + 0.1 * torch.randn(100), torch.zeros(100, 100, device=device)
    )


NAMES = {
    "mlp-mnist": Entry("mnist", partial(digits, lambda: pixels(perceptron(784, 100, 10)))),
    "mlp-fashion": Entry(data.FASHION, partial(clothes, lambda: pixels(perceptron(784, 100, 10)))),
    "mlp-bn-mnist": Entry("mnist", partial(digits, lambda: pixels(perceptron(784, 100, 100, 10, norm=True)))),
    "logistic-mnist": Entry("mnist", partial(digits, lambda: pixels(nn.Linear(784, 10)))),
    "autoencoder-mnist": Entry("mnist", reconstruction),
    "cnn-fashion": Entry(data.FASHION, partial(clothes, dropping)),
    "cnn-cifar10": Entry("cifar10", partial(objects, convolutional)),
    "vit-cifar10": Entry("cifar10", partial(objects, lambda: nn.Sequential(Pixels(), ViT()))),
    "resnet-cifar10": Entry("cifar10", partial(objects, residual, flips=True)),
    "finetune-cifar10": Entry("cifar10", fine_tuning),
    "gru-text": Entry("text", partial(text, partial(Recurrent, nn.GRU))),
    "lstm-text": Entry("text", partial(text, partial(Recurrent, nn.LSTM))),
    "gpt-text": Entry("text", partial(text, partial(GPT, length=48))),
    "llama-text": Entry("text", partial(text, llama)),
    "gpt2-text": Entry("text", partial(text, gpt2)),
    "regression": Entry("", regression),
    "sorting": Entry("", sorting),
    "reversing": Entry("", reversing),
    "adding": Entry("", adding),
    "factorization": Entry("", factorization),
    "sines": Entry("", sines),
    "quadratic": Entry("", quadratic),
    "rosenbrock": Entry("", rosenbrock),
}
"""The tasks of the study, in the order of the page."""

TASKS.update(NAMES)
