"""Recipes: schema, loading and validation."""

from cupola_flows.recipe.loading import find_recipe, load_recipe, parse_recipe, shipped
from cupola_flows.recipe.schema import Recipe

FINGERPRINTED = False  # reads and checks settings, whose values are in the fingerprint

__all__ = ["Recipe", "find_recipe", "load_recipe", "parse_recipe", "shipped"]
