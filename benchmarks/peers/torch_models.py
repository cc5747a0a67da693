"""What the peers on PyTorch share: data, the three models of 1602.05629, and one client's epoch of SGD."""

import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

LR, BATCH = 0.1, 10


@functools.cache
def data(path):
    """Return images [clients, n, 784] and labels [clients, n], or characters and the next ones [clients, n, 80]."""
    with np.load(path) as archive:
        return torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])


class TwoNN(nn.Module):
    """784-200-200-10."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(784, 200), nn.Linear(200, 200), nn.Linear(200, 10)

    def forward(self, x):
        """Return logits."""
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class CNN(nn.Module):
    """5 x 5 to 32, pool, 5 x 5 to 64, pool, 512, 10."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.a, self.b = nn.Linear(7 * 7 * 64, 512), nn.Linear(512, 10)

    def forward(self, x):
        """Return logits."""
        # Pooling before the ReLU gives the same numbers on a quarter of the elements.
        x = F.relu(F.max_pool2d(self.conv1(x.view(-1, 1, 28, 28)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.b(F.relu(self.a(x.flatten(1))))


class CharLSTM(nn.Module):
    """Characters in 8 dimensions, two LSTM layers of 256 units."""

    def __init__(self, num_symbols=75):
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.output = nn.Linear(256, num_symbols)

    def forward(self, x):
        """Return logits [B, T, symbols]."""
        return self.output(self.lstm(self.embedding(x))[0])


def make(name):
    """Return a model by its name."""
    torch.manual_seed(0)
    return {"2nn": TwoNN, "cnn": CNN, "lstm": CharLSTM}[name]()


def loss(logits, y):
    """Return the mean cross-entropy, over all places where there is more than one an example."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def train(model, x, y):
    """One epoch of SGD over one client; return the number of steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    for start in range(0, len(x), BATCH):
        optimizer.zero_grad()
        loss(model(x[start : start + BATCH]), y[start : start + BATCH]).backward()
        optimizer.step()
    return -(-len(x) // BATCH)
