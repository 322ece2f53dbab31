"""The paper's three data sets, from a folder or from their public homes; and Fashion-MNIST, as Debian has it.

``--data DIR`` or ``HYPERGRADIENT_DATA`` names a folder; without it a set is fetched once into the user's cache.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from PIL import Image
from torch import Tensor

FOLDER = "HYPERGRADIENT_DATA"


class Home(NamedTuple):
    """Where a data set is to be had.

    Args:
        files: what it may be called in a folder, the best first.
        url: where it is published.
        sha256: the checksum of what is there.
    """

    files: tuple[str, ...]
    url: str
    sha256: str


HOMES = {
    "mnist": Home(
        ("mnist.npz",),
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
    "cifar10": Home(
        ("cifar-10-python.tar.gz", "cifar10_jpeg.npz"),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "text": Home(
        ("warpeace_input.txt",),
        "https://raw.githubusercontent.com/MrHereward/machine_learning_sandbox/"
        "39611e746794ccd7f046d10546eaf436f86db6b4/warpeace_input.txt",
        "b0fc81c399971eaf738c8be89809e6a0d95c151749112b04f06b6af648d8a39f",
    ),
}

FASHION = "fashion-mnist"
"""The name of Fashion-MNIST, and of the folder of its four files."""
PACKAGED = Path("/usr/share/datasets")
"""Where Debian puts data sets."""


class Images(NamedTuple):
    """Images, uint8, (samples, channels, height, width), and labels, int64, (samples,); to train and to test on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


class Text(NamedTuple):
    """A text as numbers of its characters, int64, (characters,), and how many different ones there are."""

    train: Tensor
    test: Tensor
    vocabulary: int


def find(name: str) -> Path:
    """The file of a data set.

    Raises:
        FileNotFoundError: it is not in the folder; or there is no folder and it cannot be fetched.
    """
    if name == FASHION:
        return fashion_folder()
    home = HOMES[name]
    folder = os.environ.get(FOLDER)
    put = f"put {' or '.join(home.files)} into a folder, and name it with --data DIR or {FOLDER}"
    if folder:
        for file in home.files:
            if (Path(folder) / file).is_file():
                return Path(folder) / file
        raise FileNotFoundError(f"{name}: none of {', '.join(home.files)} is in {folder}; {put}; it is published at {home.url}")
    try:
        where = pooch.os_cache("hypergradient")
        return Path(pooch.retrieve(home.url, f"sha256:{home.sha256}", home.files[0], where, progressbar=True))
    except (OSError, ValueError) as error:  # of requests and of the checksum
        raise FileNotFoundError(f"{name}: cannot be fetched from {home.url} ({error}); {put}") from error


def fashion_folder() -> Path:
    """Where the four files of Fashion-MNIST are.

    Raises:
        FileNotFoundError: nowhere.
    """
    for folder in (Path(os.environ.get(FOLDER, "")), PACKAGED):
        if (found := folder / FASHION).is_dir():
            return found
    raise FileNotFoundError(
        f"{FASHION}: install Debian's package (apt-get install dataset-fashion-mnist), or put the four .gz files of "
        f"https://github.com/zalandoresearch/fashion-mnist into a folder {FASHION} in the one that --data or {FOLDER} names"
    )


@cache
def mnist() -> Images:
    """60,000 and 10,000 digits of 1 × 28 × 28."""
    with np.load(find("mnist")) as file:
        x, y, test_x, test_y = (torch.from_numpy(file[key]) for key in ("x_train", "y_train", "x_test", "y_test"))
    return Images(x.unsqueeze(1), y.long(), test_x.unsqueeze(1), test_y.long())


@cache
def fashion() -> Images:
    """The same of clothes."""

    def read(name: str, head: int) -> Tensor:
        content = gzip.decompress((find(FASHION) / f"{name}-ubyte.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).copy())

    parts = []
    for which in ("train", "t10k"):
        x, y = read(f"{which}-images-idx3", 16), read(f"{which}-labels-idx1", 8)
        parts += [x.view(-1, 1, 28, 28), y.long()]
    return Images(*parts)


@cache
def cifar10() -> Images:
    """50,000 and 10,000 images of 3 × 32 × 32, channels last; classes in alphabetical order."""
    path = find("cifar10")
    x, y, test = (published if path.name.endswith(".tar.gz") else compressed)(path)
    images, labels = torch.from_numpy(x).contiguous(memory_format=torch.channels_last), torch.from_numpy(y).long()
    return Images(images[~test], labels[~test], images[test], labels[test])


def published(path: Path) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Images, labels, and which are to test on, of the authors' archive."""
    if pooch.file_hash(str(path)) != HOMES["cifar10"].sha256:  # it is made of pickles, which may do anything
        raise ValueError(f"{path} is not the published archive: its SHA-256 is not {HOMES['cifar10'].sha256}")
    with tarfile.open(path) as archive:
        names = [f"cifar-10-batches-py/{part}" for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        batches = [pickle.loads(archive.extractfile(name).read(), encoding="bytes") for name in names]
    x = np.concatenate([batch[b"data"].reshape(-1, 3, 32, 32) for batch in batches])
    y = np.concatenate([np.asarray(batch[b"labels"]) for batch in batches])
    return x, y, torch.arange(len(y)) >= 50_000


def compressed(path: Path) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """The same of an archive in which every image is a JPEG; ten seconds."""
    with np.load(path) as file:
        head, body, ends, y = file["head"].tobytes(), file["body"].tobytes(), file["off"], file["y"]
        test = torch.from_numpy(file["is_test"])
    parts = (Image.open(io.BytesIO(head + body[a:b])) for a, b in pairwise(ends))
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in parts]), y, test


@cache
def text() -> Text:
    """War and Peace; the last tenth to test on."""
    book = find("text").read_text(encoding="utf-8")
    characters = sorted(set(book))
    number = {c: i for i, c in enumerate(characters)}
    codes = torch.tensor([number[c] for c in book])
    cut = len(codes) * 9 // 10
    return Text(codes[:cut], codes[cut:], len(characters))
