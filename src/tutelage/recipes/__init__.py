"""Recipes: the schema of a run, its YAML files, and how flags override them."""

from tutelage.recipes.reading import read_recipe, recipe_names
from tutelage.recipes.resolve import dump, resolve
from tutelage.recipes.schema import ModelRecipe, Recipe, ScheduleRecipe, validate

__all__ = [
    "ModelRecipe",
    "Recipe",
    "ScheduleRecipe",
    "dump",
    "read_recipe",
    "recipe_names",
    "resolve",
    "validate",
]
