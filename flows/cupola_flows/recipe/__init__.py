"""Recipes: what they may say, how they are read, and what is refused."""

from cupola_flows.recipe.loading import find_recipe, load_recipe, parse_recipe, shipped
from cupola_flows.recipe.schema import Recipe

FINGERPRINTED = False  # reads and checks settings, whose values a fingerprint has

__all__ = ["Recipe", "find_recipe", "load_recipe", "parse_recipe", "shipped"]
