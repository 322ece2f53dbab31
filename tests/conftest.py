"""What tests ask for by name."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hypergradient.engine import Engine

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # of two, one waits for the other where anything else runs: a small step takes twenty times as long


@pytest.fixture
def float32():
    """The default of a user's script, in the place of this suite's float64."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def exact_muon(monkeypatch):
    """torch's Muon rounds its iterations to bfloat16, ours do not. Here neither does, to compare the algorithm."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    exact = SimpleNamespace(**{**vars(torch), "bfloat16": torch.float64})  # from torch 2.14 on, by its name
    monkeypatch.setattr(torch.optim._muon, "torch", exact)


@pytest.fixture
def without_tapes(monkeypatch):
    """A step operation by operation, as on a device that is not the CPU."""
    monkeypatch.setattr(Engine, "_may_play", lambda *_: False)


@pytest.fixture
def fresh_compiler():
    """One that remembers nothing."""
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def lines():
    """Real text as lines of 32 bytes: of the data that HYPERGRADIENT_DATA names, or our own. shape: (lines, 32)"""
    data = Path(os.environ.get("HYPERGRADIENT_DATA", "")) / "warpeace_input.txt"
    sources = [data] if data.is_file() else [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "LICENSE")]
    text = b"".join(source.read_bytes()[:20_000] for source in sources)
    return torch.tensor(list(text[: len(text) // 32 * 32])).view(-1, 32)


def forget():
    from experiments import data, runner

    for cached in (data.mnist, data.cifar10, data.text, runner.task):
        cached.cache_clear()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of small stand-ins: 600 images of each kind, a text of 6,000 characters."""
    from PIL import Image

    folder, random = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    y = np.arange(600, dtype=np.uint8) % 10
    x = (random.random((600, 28, 28)) * 100 + 15 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / "mnist.npz", x_train=x[:500], y_train=y[:500], x_test=x[500:], y_test=y[500:])
    images = []
    for label in y:
        image = Image.fromarray((random.random((32, 32, 3)) * 100 + 15 * label).astype(np.uint8))
        image.save(file := io.BytesIO(), "JPEG")
        images.append(file.getvalue())
    ends = np.cumsum([0, *map(len, images)], dtype=np.uint32)
    body = np.frombuffer(b"".join(images), dtype=np.uint8)
    test = np.arange(600) >= 500
    np.savez(folder / "cifar10_jpeg.npz", head=np.zeros(0, np.uint8), body=body, off=ends, y=y, is_test=test)
    (folder / "warpeace_input.txt").write_text("Well, Prince, so Genoa and Lucca are now just family estates. " * 100)
    monkeypatch.setenv("HYPERGRADIENT_DATA", str(folder))
    forget()
    yield folder
    forget()
