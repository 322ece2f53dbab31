"""What tests ask for by name."""

import os
from pathlib import Path

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
