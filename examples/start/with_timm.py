"""timm: a model, a scheduler and the average of weights (EMA) of timm, on synthetic pictures."""

import timm
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy

from hypergradient import Hyperoptimizer, auto

torch.manual_seed(0)
labels = torch.randint(4, (64,))
images = torch.randn(64, 1, 32, 32) + torch.randn(4, 1, 32, 32)[labels]  # a picture per class, and noise

model = timm.create_model("test_resnet", num_classes=4, in_chans=1)
ema = ModelEmaV3(model, decay=0.9)
optimizer = Hyperoptimizer(model.parameters(), auto(weight_decay=0.05))

epochs, updates = 40, 4
scheduler = CosineLRScheduler(optimizer, t_initial=epochs * updates, t_in_epochs=False)  # no warm-up: the optimizer has its own

step = 0
for _ in range(epochs):
    for batch in torch.randperm(64).split(64 // updates):
        optimizer.zero_grad()
        loss = cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        ema.update(model)
        step += 1
        scheduler.step_update(step)

print(f"loss of the last batch {loss.item():.3f}")
print(optimizer)
