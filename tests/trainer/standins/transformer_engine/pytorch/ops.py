"""Fusible operations, only as names."""

from ..absent import absent

Sequential = absent("pytorch.ops.Sequential")
FusibleOperation = absent("pytorch.ops.FusibleOperation")
