"""One file per optimizer; notation and names of its paper, arguments and defaults of torch.optim."""
