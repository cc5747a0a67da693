"""MNIST with the two models of 1602.05629, section 3: the 2NN and the CNN; 100 devices unless told otherwise."""

from collections.abc import Callable
from typing import Any

from covey.data.dataset import FederatedDataset
from covey.data.registry import load
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.task import Out, Task
from covey.recipes.recipe import Recipe, Settings

__all__ = ["RECIPES"]

EXAMPLES = ExampleSchema(
    fields=(
        FieldSpec(name="x", shape=(784,), source="a digit as it was written"),
        FieldSpec(name="y", dtype="int32", role="label", num_values=10, source="the digit that was meant"),
    ),
    query=Query(collection="digits"),
)


def _task(name: str, init_and_apply: Callable[[], tuple[Any, Any]]) -> Task:
    import jax

    from covey.models.losses import classification

    init, apply = init_and_apply()

    def loss(params: Any, batch: Any, key: Any) -> Out:
        return classification(apply(params, batch["x"]), batch["y"])

    def predict(params: Any, inputs: Any) -> Any:
        return {"probabilities": jax.nn.softmax(apply(params, inputs["x"]))}

    return Task(name, init, loss, EXAMPLES, predict)


def _two_nn() -> tuple[Any, Any]:
    from covey.models.classifiers import mnist_2nn, mnist_2nn_init

    return mnist_2nn_init, mnist_2nn


def _cnn() -> tuple[Any, Any]:
    from covey.models.classifiers import mnist_cnn, mnist_cnn_init

    return mnist_cnn_init, mnist_cnn


def task_2nn() -> Task:
    """Return the 2NN's task."""
    return _task("mnist-2nn", _two_nn)


def task_cnn() -> Task:
    """Return the CNN's task."""
    return _task("mnist-cnn", _cnn)


def data(settings: Settings, seed: int) -> FederatedDataset:
    """Return MNIST, dealt out."""
    return load("mnist", partition=settings.partition, num_clients=settings.num_clients, seed=seed)


RECIPES = {
    "mnist-2nn": Recipe(
        name="mnist-2nn",
        summary="MNIST, the two-layer network of the paper (199,210 parameters)",
        task=task_2nn,
        examples=EXAMPLES,
        data=data,
        settings=Settings(partition="iid", num_clients=100, lr=0.1, chunk_steps=60, eval_batch_size=500),
        lrs={"fedsgd": 0.5},
    ),
    "mnist-cnn": Recipe(
        name="mnist-cnn",
        summary="MNIST, the convolutional network of the paper (1,663,370 parameters)",
        task=task_cnn,
        examples=EXAMPLES,
        data=data,
        settings=Settings(partition="iid", num_clients=100, lr=0.1, chunk_steps=20),
        lrs={"fedsgd": 0.3},
    ),
}
