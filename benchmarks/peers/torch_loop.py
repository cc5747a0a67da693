"""FedAvg as a plain PyTorch loop; ``--variant 2x1``: two processes of one thread, ``1x2``: one process of two."""

import multiprocessing

import numpy as np
import torch
from gate import Finished, Gate, arguments
from torch_models import data, make, train


def train_clients(model, args, params, clients):
    """Train some clients from ``params``; return their weighted sum, the weight and the steps."""
    x, y = data(args.data)
    total, weight, steps = torch.zeros_like(params), 0, 0
    for client in clients:
        torch.nn.utils.vector_to_parameters(params, model.parameters())
        steps += train(model, x[client], y[client])
        total += len(x[client]) * torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        weight += len(x[client])
    return total, weight, steps


def serve(connection, args):
    """Answer (parameters, clients) until None comes."""
    torch.set_num_threads(1)
    model = make(args.model)
    while (message := connection.recv()) is not None:
        params, clients = message
        total, weight, steps = train_clients(model, args, torch.from_numpy(params), clients)
        connection.send((total.numpy(), weight, steps))


def main():
    args = arguments()
    gate = Gate()
    processes = 2 if args.variant == "2x1" else 1
    torch.set_num_threads(2 // processes)
    model = make(args.model)
    params = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    num_clients = len(data(args.data)[0])
    rng = np.random.default_rng(0)
    workers, connections = [], []
    for _ in range(processes if processes > 1 else 0):
        ours, theirs = multiprocessing.Pipe()
        workers.append(multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, args), daemon=True))
        workers[-1].start()
        connections.append(ours)
    try:
        while True:
            clients = rng.choice(num_clients, args.cohort, replace=False).tolist()
            for i, connection in enumerate(connections):
                connection.send((params.numpy(), clients[i :: len(connections)]))
            sums = [connection.recv() for connection in connections] or [train_clients(model, args, params, clients)]
            params = sum(torch.as_tensor(s[0]) for s in sums) / sum(s[1] for s in sums)
            assert torch.isfinite(params).all()
            gate.round_done(sum(s[2] for s in sums), {"torch": torch.__version__})
    except Finished:
        for connection in connections:
            connection.send(None)


if __name__ == "__main__":
    main()
