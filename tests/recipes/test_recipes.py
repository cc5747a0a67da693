import dataclasses
import types

import numpy as np
import pytest

from covey.data.dataset import from_clients
from covey.data.shakespeare import VOCABULARY
from covey.plans.lint import lint_plan
from covey.plans.manifest import PrivacyTerms
from covey.recipes import RECIPES, load_recipe
from covey.recipes.prepare import plan_options, prepare
from covey.types.errors import UsageError

TERMS = PrivacyTerms(min_cohort=1)
SIZES = (3, 11)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def dataset_like(recipe):
    """Random examples of a recipe's schema: no data set is needed to build a plan."""
    rng = np.random.default_rng(0)

    def values(field, count):
        shape = (count, *field.shape)
        if field.dtype.startswith("int"):
            return rng.integers(0, field.num_values or 2, shape).astype(field.dtype)
        return rng.random(shape).astype(field.dtype)

    clients = {f"c{n}": {f.name: values(f, n) for f in recipe.examples.fields} for n in SIZES}
    return from_clients("random", clients)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_becomes_a_plan_that_a_device_accepts(name):
    recipe = load_recipe(name)
    prepared = prepare(recipe, name, recipe.settings, TERMS, dataset_like(recipe))
    assert not prepared.cached
    lint_plan(prepared.plan)
    assert prepared.plan.manifest.examples == recipe.examples == recipe.task().examples
    assert sum(v.size for v in prepared.params.values()) == sum(t.size for t in prepared.plan.manifest.params)


def test_the_papers_models_have_the_papers_sizes():
    """1602.05629, section 3: 199,210 parameters in the 2NN and 1,663,370 in the CNN.

    The character LSTM embeds in 8 dimensions and has two layers of 256; the paper's 866,578 parameters are those of a
    vocabulary of 256 symbols and of two biases in each layer. Ours has the symbols that occur.
    """
    import jax

    counts = {}
    for name in ("mnist-2nn", "mnist-cnn", "cifar10-cnn", "shakespeare-lstm"):
        tree = jax.eval_shape(load_recipe(name).task().init, jax.random.key(0))
        counts[name] = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
    assert counts["mnist-2nn"] == 199_210
    assert counts["mnist-cnn"] == 1_663_370
    assert counts["cifar10-cnn"] == 1_068_298  # the paper says about a million
    layers = 4 * 256 * (8 + 256 + 1) + 4 * 256 * (256 + 256 + 1)
    assert counts["shakespeare-lstm"] == layers + VOCABULARY.size * (8 + 256 + 1)


def test_a_second_time_the_same_bytes_come_from_the_cache(tmp_path):
    recipe = load_recipe("keyboard")
    dataset = dataset_like(recipe)
    first = prepare(recipe, "keyboard", recipe.settings, TERMS, dataset)
    built = []
    again = prepare(recipe, "keyboard", recipe.settings, TERMS, dataset, on_build=lambda: built.append(1))
    assert again.cached and not built
    assert (again.plan_bytes, again.checkpoint) == (first.plan_bytes, first.checkpoint)
    for file in (tmp_path / "covey" / "plans").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    mended = prepare(recipe, "keyboard", recipe.settings, TERMS, dataset)
    assert not mended.cached and mended.plan_bytes == first.plan_bytes
    other = prepare(recipe, "keyboard", recipe.settings, TERMS, dataset, seed=1)
    assert not other.cached and other.checkpoint != first.checkpoint


def test_what_matters_to_a_plan_changes_its_options():
    recipe = load_recipe("keyboard")
    dataset = dataset_like(recipe)
    infinite = plan_options(dataclasses.replace(recipe.settings, batch_size=None), TERMS, dataset)
    assert infinite.batch_size == max(SIZES)
    fedsgd = plan_options(dataclasses.replace(recipe.settings, algorithm="fedsgd", epochs=9), TERMS, dataset)
    assert fedsgd.gradient_batch_size == max(SIZES)


@pytest.mark.parametrize(
    ("sizes", "piece"), [((600,) * 9, 50), ((23, 24, 25), 25), ((7,) * 50 + (500,), 12), ((3, 3), 3)]
)
def test_a_full_gradient_is_summed_in_pieces_that_are_not_mostly_filling(sizes, piece):
    recipe = load_recipe("keyboard")
    settings = dataclasses.replace(recipe.settings, algorithm="fedsgd")
    dataset = types.SimpleNamespace(sizes=sizes)
    assert plan_options(settings, TERMS, dataset).gradient_batch_size == piece


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_recipe("mnist-2n")
    assert "mnist-2nn" in caught.value.hint


def test_a_recipe_whose_task_has_another_schema_is_refused():
    recipe = load_recipe("keyboard")
    other = dataclasses.replace(recipe, examples=load_recipe("mnist-2nn").examples)
    with pytest.raises(UsageError, match="one schema"):
        prepare(other, "keyboard", recipe.settings, TERMS, dataset_like(recipe), seed=5)
