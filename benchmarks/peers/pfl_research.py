"""FedAvg in pfl-research; ``--variant 2x1``: two processes of one thread, ``1x2``: one process of two threads."""

import os
import socket
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import torch
from gate import Finished, Gate, arguments
from torch_models import BATCH, LR, data, loss, make


def launch():
    """Run two ranks of this script, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "bench"}
    command = [sys.executable, *sys.argv]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)
    ]
    code = ranks[0].wait()  # it reads stdin; the other waits for it
    ranks[1].kill()
    raise SystemExit(code)


def main():
    args = arguments()
    if args.variant == "2x1" and "RANK" not in os.environ:
        launch()
    torch.set_num_threads(1 if args.variant == "2x1" else 2)
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    x, y = data(args.data)
    np.random.seed(0)
    gate = Gate() if os.environ.get("RANK", "0") == "0" else None
    versions = {name: version(name) for name in ("pfl", "torch")}
    steps = args.cohort * -(-x.shape[1] // BATCH)

    class Timer(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            try:
                if gate is not None:
                    gate.round_done(steps, versions)
            except Finished:
                os._exit(0)
            if args.variant == "2x1":
                torch.distributed.barrier()  # the other rank must not begin the next round before its turn
            return False, Metrics()

    def dataset(client):
        order = torch.randperm(len(x[client]))
        return PyTorchTensorDataset((x[client][order], y[client][order]), user_id=client)

    module = make(args.model)
    module.loss = lambda inputs, labels: loss(module(inputs), labels)
    module.metrics = lambda inputs, labels: {
        "loss": Weighted(loss(module(inputs), labels).item() * len(labels), len(labels))
    }
    clients = list(range(len(x)))
    train_set = FederatedDataset(dataset, get_user_sampler("random", clients))
    backend = SimulatedBackend(train_set, train_set, postprocessors=[WeightByDatapoints()])
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=10**6, evaluation_frequency=10**7, train_cohort_size=args.cohort, val_cohort_size=0
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
        callbacks=[Timer()],
    )


if __name__ == "__main__":
    main()
