"""What a tower of height 2 learns on handwritten digits, as a picture, a table and a schedule to repeat it with.

    python -m examples.history

Leaves demo/history.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from hypergradient import SGD, Adam, History, Hyperoptimizer


def main() -> None:
    """Train, draw, and train again with the recorded schedule and without a tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo/history.png"), help="the picture (default: %(default)s)")
    args = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

    def train(make):  # the same weights and batches each time
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
        optimizer, scheduler, watch = make(model)
        for _ in range(args.epochs):
            for batch in torch.randperm(len(y)).split(64):
                optimizer.zero_grad()
                loss = cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
        return cross_entropy(model(x), y).item(), watch

    def tower(model):
        optimizer = Hyperoptimizer(model.parameters(), Adam(lr=1e-4) / Adam(lr=1e-4) / SGD(lr=1e-6))
        return optimizer, None, History(optimizer)

    def again(model):
        optimizer = torch.optim.Adam(model.parameters())
        return optimizer, history.scheduler(optimizer), None

    error, history = train(tower)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    history.plot().savefig(args.out)
    print(history.optimizer)
    print(f"loss after training: {error:.4g} with the tower, {train(again)[0]:.4g} with torch.optim.Adam and its schedule")
    print(f"picture in {args.out}")


if __name__ == "__main__":
    main()
