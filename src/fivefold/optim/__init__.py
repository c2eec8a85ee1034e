"""Update rules that torch does not have, each a `torch.optim.Optimizer`."""
