"""FedAvg in Flower's simulation: Ray, two actors of one core each."""

import logging
import os

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

from importlib.metadata import version

import ray
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from gate import Finished, Gate, arguments
from torch_models import BATCH, data, make, train

logging.getLogger("flwr").setLevel(logging.ERROR)


def client_app(path, name):
    """Return the client."""
    app = ClientApp()

    @app.train()
    def run(message, context):
        torch.set_num_threads(1)
        x, y = data(path)
        client = int(context.node_config["partition-id"])
        model = make(name)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        steps = train(model, x[client], y[client])
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(x[client]), "steps": steps}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    return app


class Gated(FedAvg):
    """FedAvg that waits at the gate before each round but the first."""

    begun = False

    def __init__(self, pass_gate, **settings):
        super().__init__(**settings)
        self._pass_gate = pass_gate

    def configure_train(self, *args, **kwargs):
        """Wait at the gate: the round before is over."""
        if self.begun:
            self._pass_gate()
        self.begun = True
        return super().configure_train(*args, **kwargs)


def main():
    args = arguments()
    gate = Gate()
    num_clients, num_examples = data(args.data)[1].shape[:2]
    versions = {name: version(name) for name in ("flwr", "ray", "torch")}
    server = ServerApp()

    def pass_gate():
        try:
            gate.round_done(args.cohort * -(-num_examples // BATCH), versions)
        except Finished:
            ray.shutdown()
            os._exit(0)

    @server.main()
    def run(grid, context):
        share = args.cohort / num_clients
        strategy = Gated(pass_gate, fraction_train=share, fraction_evaluate=0.0, min_train_nodes=args.cohort)
        strategy.start(grid=grid, initial_arrays=ArrayRecord(make(args.model).state_dict()), num_rounds=10**6)

    backend = {
        "init_args": {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, client_app(args.data, args.model), num_clients, backend_config=backend)


if __name__ == "__main__":
    main()
