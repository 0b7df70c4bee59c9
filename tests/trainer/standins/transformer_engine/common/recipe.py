"""FP8 recipes, only as names."""

from ..absent import absent

DelayedScaling = absent("common.recipe.DelayedScaling")
