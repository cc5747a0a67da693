"""Ready tasks. Each recipe names a task, an algorithm, its data and the settings that work."""

from covey.recipes.recipe import RECIPES, Recipe, Settings, load_recipe

__all__ = ["RECIPES", "Recipe", "Settings", "load_recipe"]
