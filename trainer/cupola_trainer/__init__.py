"""Run one training job on Megatron-Core: `torchrun -m cupola_trainer JOB.json`. Importing this package loads no
torch."""

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Sequence


class _MegatronImports:
    """Passes imports of megatron.core to `cupola_trainer.megatron`, which adapts them to this machine. Only then is
    torch loaded."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "megatron.core" and not name.startswith("megatron.core."):
            return None
        imports = importlib.import_module("cupola_trainer.megatron.imports")
        spec: importlib.machinery.ModuleSpec | None = imports.find_spec(name, path)
        return spec


sys.meta_path.insert(0, _MegatronImports)
