"""paretobit: give it a model and what you can afford; it returns the best model that fits.

    import paretobit as pb
    pb.quantize("model-dir", to="w3g64", out="small")
    print(pb.evaluate("small", against="model-dir", text="eval.txt"))

Every verb of the command line is a function here, with the same options. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "quantize": "paretobit.verbs.quantize",
    "evaluate": "paretobit.verbs.evaluate",
    "plan": "paretobit.verbs.plan",
    "train": "paretobit.verbs.train",
    "inspect_artifact": "paretobit.verbs.inspect",
    "merge": "paretobit.verbs.merge",
    "demo": "paretobit.verbs.demo",
    "probe": "paretobit.verbs.probe",
    "bench": "paretobit.verbs.bench",
    "report": "paretobit.verbs.report",
    "run": "paretobit.verbs.run",
    "chat": "paretobit.verbs.chat",
    "export": "paretobit.verbs.export",
    "prepare": "paretobit.compress.trainable",
    "save_quantized": "paretobit.compress.trainable",
    "serve": "paretobit.verbs.serve",
    "load": "paretobit.runtime.generate",
    "Model": "paretobit.runtime.generate",
    "open_model": "paretobit.checkpoint",
    "Artifact": "paretobit.artifact",
    "ParetobitError": "paretobit.errors",
    "Plan": "paretobit.planfile",
    "QTensor": "paretobit.qtensor",
    "Scheme": "paretobit.scheme",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("paretobit")
    if name not in _HOMES:
        raise AttributeError(f"module 'paretobit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
