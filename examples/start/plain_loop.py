"""A loop of your own: handwritten digits of scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from hypergradient import Hyperoptimizer

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
train, test = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
loader = DataLoader(train, batch_size=64, shuffle=True)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
optimizer = Hyperoptimizer(model.parameters())

for epoch in range(10):
    optimizer.train()  # the weights of training
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    optimizer.eval()  # their average, for validation and for saving the model
    x, y = test[:]
    with torch.no_grad():
        error = (model(x).argmax(1) != y).float().mean()
    print(f"epoch {epoch}: test error {error:.1%}, step size {optimizer.hyperparameters()[0]['lr']:.2g}")
