"""FedAvg in FedJAX, with the jitted backend (its other one, pmap, needs a function that this JAX no longer has)."""

import itertools
from importlib.metadata import version

from gate import Finished, Gate, arguments

NUM_SYMBOLS = 75


def main():
    args = arguments()
    gate = Gate()
    import jax

    jax.tree_map = jax.tree_util.tree_map  # FedJAX 0.0.17 still uses the name that JAX has removed
    import fedjax
    import haiku as hk
    import numpy as np
    import optax

    def two_nn(x):
        return hk.nets.MLP([200, 200, 10])(x)

    def cnn(x):
        x = x.reshape(-1, 28, 28, 1)
        for channels in (32, 64):
            x = jax.nn.relu(hk.max_pool(hk.Conv2D(channels, 5)(x), (2, 2, 1), (2, 2, 1), "SAME"))
        return hk.nets.MLP([512, 10])(x.reshape(len(x), -1))

    def lstm(x):
        h = hk.Embed(NUM_SYMBOLS, 8)(x.T)
        for _ in range(2):
            core = hk.LSTM(256)
            h, _ = hk.dynamic_unroll(core, h, core.initial_state(h.shape[1]))
        return hk.Linear(NUM_SYMBOLS)(h).swapaxes(0, 1)

    model = hk.without_apply_rng(hk.transform({"2nn": two_nn, "cnn": cnn, "lstm": lstm}[args.model]))

    def loss(params, batch, rng):
        logits = model.apply(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    fedjax.set_for_each_client_backend("jit")
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(0.1),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=10, num_epochs=1, seed=0),
    )
    with np.load(args.data) as archive:
        x, y = archive["x"], archive["y"].astype(np.int32)
        x = x.astype(np.int32) if x.dtype == np.int64 else x
    datasets = {str(i).encode(): {"x": x[i], "y": y[i]} for i in range(len(x))}
    sampler = fedjax.client_samplers.UniformGetClientSampler(
        fedjax.InMemoryFederatedData(datasets), args.cohort, seed=0
    )
    state = algorithm.init(model.init(jax.random.PRNGKey(0), x[0, :1]))
    versions = {name: version(name) for name in ("fedjax", "jax", "jaxlib")}
    try:
        for number in itertools.count():
            sampler.set_round_num(number)
            state, _ = algorithm.apply(state, sampler.sample())
            jax.block_until_ready(state.params)
            assert all(np.isfinite(v).all() for v in jax.tree_util.tree_leaves(state.params))
            gate.round_done(args.cohort * -(-x.shape[1] // 10), versions)
    except Finished:
        pass


if __name__ == "__main__":
    main()
