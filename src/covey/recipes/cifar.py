"""CIFAR-10 with the network of 1602.05629, section 3, and its augmentation; 100 devices unless told otherwise.

Training sees a random 24 x 24 crop of an image, flipped or not, with its contrast and brightness changed at random;
evaluation sees the middle. Both are whitened: each image has mean 0 and variance 1.
"""

from typing import Any

from covey.data.dataset import FederatedDataset
from covey.data.registry import load
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.task import Out, Task
from covey.recipes.recipe import Recipe, Settings

__all__ = ["RECIPES", "task"]

EXAMPLES = ExampleSchema(
    fields=(
        FieldSpec(name="x", shape=(32, 32, 3), source="a small photograph"),
        FieldSpec(name="y", dtype="int32", role="label", num_values=10, source="what it shows"),
    ),
    query=Query(collection="photographs"),
)


def task() -> Task:
    """Return the task; its loss augments where it gets a key."""
    import jax

    from covey.models.augmentation import augmented, centre, whitened
    from covey.models.classifiers import cifar_cnn, cifar_cnn_init
    from covey.models.losses import classification

    def logits(params: Any, images: Any) -> Any:
        return cifar_cnn(params, whitened(images))

    def loss(params: Any, batch: Any, key: Any) -> Out:
        images = batch["x"]
        images = centre(images, 24) if key is None else augmented(images, 24, key)
        return classification(logits(params, images), batch["y"])

    def predict(params: Any, inputs: Any) -> Any:
        return {"probabilities": jax.nn.softmax(logits(params, centre(inputs["x"], 24)))}

    return Task("cifar10-cnn", cifar_cnn_init, loss, EXAMPLES, predict)


def data(settings: Settings, seed: int) -> FederatedDataset:
    """Return CIFAR-10, dealt out."""
    return load("cifar10", partition=settings.partition, num_clients=settings.num_clients, seed=seed)


RECIPES = {
    "cifar10-cnn": Recipe(
        name="cifar10-cnn",
        summary="CIFAR-10, the convolutional network of the paper (1,068,298 parameters)",
        task=task,
        examples=EXAMPLES,
        data=data,
        settings=Settings(partition="iid", num_clients=100, lr=0.1, epochs=5, batch_size=50, chunk_steps=10),
        lrs={"fedsgd": 0.2},
    ),
}
