"""The paper's models, as modules that return logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, relu


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of all outputs. shapes: (…, classes), (…)"""
    return cross_entropy(logits.flatten(0, -2), target.flatten())


class MLP(nn.Sequential):
    """The paper's, on MNIST: 784–128–10 with tanh on the hidden layer and on the outputs; 102k elements in 4 tensors."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10), nn.Tanh())


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, before: int, width: int, projection: bool) -> None:
        super().__init__()
        self.stride = width // before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.projection = None
        if projection and width != before:
            self.projection = nn.Sequential(nn.Conv2d(before, width, 1, self.stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, before, height, width) to (batch, width, height / stride, width / stride)."""
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        if self.projection is not None:
            return relu(y + self.projection(x))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        new = y.shape[1] - x.shape[1]
        return relu(y + pad(shortcut, (0, 0, 0, 0, 0, new)) if new else y + shortcut)


class ResNet(nn.Module):
    """He et al. 2016, section 4.2, on CIFAR-10.

    Args:
        widths: the channels of the first convolution and of each block after it; the first block of more halves the image.
        projection: whether shortcuts between sizes are 1 × 1 convolutions (their option B) or pad with zeros (option A, theirs
            on CIFAR-10).
        classes: the number of outputs.
    """

    def __init__(self, widths: Sequence[int], projection: bool = False, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, projection) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 3, 32, 32) to (batch, classes)."""
        return self.head(self.blocks(relu(self.norm(self.conv(x)))).mean(dim=(2, 3)))


class ResNet20(ResNet):
    """Theirs of 20 layers: 270k elements in 59 tensors, with projections 272k in 65."""

    def __init__(self, projection: bool = False, classes: int = 10) -> None:
        super().__init__([16, 16, 16, 16, 32, 32, 32, 64, 64, 64], projection, classes)


class CharLSTM(nn.Module):
    """Two layers of `nn.LSTM` over an embedding of characters."""

    def __init__(self, vocabulary: int, embedding: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, sequence) to (batch, sequence, vocabulary)."""
        return self.head(self.lstm(self.embedding(x))[0])
