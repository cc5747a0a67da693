"""The keyboard: a next-character model, learnt from what each device's owner types. Here: Shakespeare's roles.

Every role of the plays is one device that holds only its own lines. An example is a character and the eight symbols
before it on its line.
"""

from typing import Any

from covey.data.dataset import FederatedDataset
from covey.data.registry import load
from covey.data.shakespeare import VOCABULARY
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.task import Out, Task
from covey.recipes.recipe import Recipe, Settings

__all__ = ["CONTEXT", "RECIPES", "task"]

CONTEXT = 8
"""How many symbols the model sees."""

EXAMPLES = ExampleSchema(
    fields=(
        FieldSpec(
            name="x", shape=(CONTEXT,), dtype="int32", num_values=VOCABULARY.size, source="the characters just typed"
        ),
        FieldSpec(name="y", dtype="int32", role="label", num_values=VOCABULARY.size, source="the next character typed"),
    ),
    query=Query(collection="typed"),
)


def task() -> Task:
    """Return the task."""
    import jax

    from covey.models.language import window_model, window_model_init
    from covey.models.losses import classification

    def init(key: Any) -> Any:
        return window_model_init(key, VOCABULARY.size, CONTEXT, size=16, num_units=128)

    def loss(params: Any, batch: Any, key: Any) -> Out:
        return classification(window_model(params, batch["x"]), batch["y"])

    def predict(params: Any, inputs: Any) -> Any:
        return {"probabilities": jax.nn.softmax(window_model(params, inputs["x"]))}

    return Task("keyboard", init, loss, EXAMPLES, predict)


def data(settings: Settings, seed: int) -> FederatedDataset:
    """Return the roles with the most lines; they are the same for every seed."""
    return load(
        "shakespeare", partition=settings.partition, num_clients=settings.num_clients, form="windows", length=CONTEXT
    )


RECIPES = {
    "keyboard": Recipe(
        name="keyboard",
        summary="next-character suggestions from Shakespeare's roles (a window model of 37,000 parameters)",
        task=task,
        examples=EXAMPLES,
        data=data,
        settings=Settings(
            cohort=8,
            batch_size=50,
            lr=0.5,
            max_steps=60,
            max_examples=50_000,
            num_clients=24,
            trainer="onnx",
            chunk_steps=60,
            eval_batch_size=500,
        ),
        lrs={"fedsgd": 2.0},
    )
}
