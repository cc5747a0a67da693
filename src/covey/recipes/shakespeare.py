"""Shakespeare by role with the stacked LSTM of 1602.05629, section 3, on pieces of 80 characters."""

from typing import Any

import numpy as np

from covey.data.dataset import FederatedDataset
from covey.data.registry import load
from covey.data.shakespeare import VOCABULARY
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.task import Out, Task
from covey.recipes.recipe import Recipe, Settings

__all__ = ["LENGTH", "RECIPES", "task"]

LENGTH = 80

EXAMPLES = ExampleSchema(
    fields=(
        FieldSpec(name="x", shape=(LENGTH,), dtype="int32", num_values=VOCABULARY.size, source="a piece of a speech"),
        FieldSpec(
            name="y",
            shape=(LENGTH,),
            dtype="int32",
            role="label",
            num_values=VOCABULARY.size,
            source="the character that came next, at every place",
        ),
    ),
    query=Query(collection="speeches"),
)


def task() -> Task:
    """Return the task; its accuracy is over characters."""
    import jax

    from covey.models.language import char_lstm, char_lstm_init
    from covey.models.losses import next_symbol

    def init(key: Any) -> Any:
        return char_lstm_init(key, VOCABULARY.size)

    def loss(params: Any, batch: Any, key: Any) -> Out:
        return next_symbol(char_lstm(params, batch["x"]), batch["y"])

    def predict(params: Any, inputs: Any) -> Any:
        return {"probabilities": jax.nn.softmax(char_lstm(params, inputs["x"])[:, np.int32(-1)])}

    return Task("shakespeare-lstm", init, loss, EXAMPLES, predict)


def data(settings: Settings, seed: int) -> FederatedDataset:
    """Return all roles, or those with the most lines; the same for every seed."""
    return load("shakespeare", partition=settings.partition, num_clients=settings.num_clients, length=LENGTH)


RECIPES = {
    "shakespeare-lstm": Recipe(
        name="shakespeare-lstm",
        summary="next-character prediction with the paper's LSTM, 1,256 roles (820,000 parameters)",
        task=task,
        examples=EXAMPLES,
        data=data,
        settings=Settings(lr=1.0, batch_size=10, chunk_steps=5, max_examples=1000, eval_batch_size=50),
        lrs={"fedsgd": 5.0},
    )
}
