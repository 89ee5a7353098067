"""The rules of the house: who imports whom, how long files are, what every verb is called."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import paretobit

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "paretobit"
FILES = sorted(PACKAGE.rglob("*.py"))

# An importer's layer must not lie below what it imports. Same layer: allowed inside one folder only.
LAYERS = [
    {"errors", "scheme", "progress", "pieces"},
    {"trellis", "rotation", "budget"},
    {"qtensor", "work"},
    {"native", "packing", "scales", "tensorfile", "profile"},
    {"arch", "hardware", "kv", "sizes", "speed"},
    {"checkpoint", "planfile"},
    {"bands"},
    {"solve", "costs", "artifact", "pace"},
    {"exporters", "runtime", "evals", "reports"},
    {"compress", "server"},
    {"verbs"},
    {"cli", "__main__", "__init__"},
]
LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}
HEAVY = {"scipy", "altair", "onnx", "gguf", "huggingface_hub", "lm_eval"}
HEAVY |= {"jinja2", "tokenizers", "matplotlib", "vl_convert"}
SERVING = {"starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance"}  # server/ is nothing without them
HEAVY |= SERVING
LIGHT_ONLY = {"torch", "transformers"}
# Imports inside a function that look upwards: opening a name leads to a packed model, and the adapter opens models.
UPWARD = {("checkpoint", "artifact"), ("evals", "verbs")}


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool, int]]:
    """(module, at module level, line) of every import in a file; those under TYPE_CHECKING do not count."""
    tree = ast.parse(path.read_text())
    top = set()
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node):
            if typing_only:
                child.typing_only = True
        if isinstance(node, ast.Import | ast.ImportFrom):
            top.add(node)
    found = []
    for node in ast.walk(tree):
        if getattr(node, "typing_only", False):
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node in top, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "paretobit":
                found += [(f"paretobit.{alias.name}", node in top, node.lineno) for alias in node.names]
            else:
                found.append((node.module, node in top, node.lineno))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    for module, at_top, line in imports(path):
        root = module.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        if root in LIGHT_ONLY:
            assert unit(path) == "compress", f"{where} imports {root}"
            assert root != "transformers", f"{where} imports transformers"
        if root in SERVING:
            assert unit(path) == "server", f"{where} imports {root}"
        assert not (root in HEAVY - SERVING and at_top), (
            f"{where}: {root} is heavy, import it inside the function that needs it"
        )
        if root == "paretobit" and len(module.split(".")) > 1:
            target = module.split(".")[1]
            if target not in LAYER_OF or target == unit(path):
                continue
            if not at_top and (unit(path), target) in UPWARD:
                continue
            assert LAYER_OF[target] <= LAYER_OF[unit(path)], f"{where} imports {target}, which lies above {unit(path)}"


def test_every_unit_has_a_layer() -> None:
    units = {unit(path) for path in FILES}
    assert units <= set(LAYER_OF), f"no layer for {units - set(LAYER_OF)}: say in LAYERS where it belongs"


@pytest.mark.parametrize("path", FILES + sorted(ROOT.glob("tests/**/*.py")) + sorted(ROOT.glob("bench/**/*.py")),
                         ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_python_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 400, f"{path} has 400 lines or more"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length < 60, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".inl"}), ids=str
)
def test_native_files_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 600
    assert re.fullmatch(r"bind(_\w+)?\.(cpp|h)", path.name) or not re.search(r"nanobind|Python\.h", text), (
        f"{path} knows Python"
    )


def test_verbs_are_callable_after_every_submodule_is_imported() -> None:
    for module in pkgutil.walk_packages(paretobit.__path__, "paretobit."):
        if not module.name.endswith(("__main__", "_native")):
            importlib.import_module(module.name)
    for name in paretobit.__all__:
        assert callable(getattr(paretobit, name)), f"paretobit.{name} is hidden by a module"


def test_light_imports_stay_light() -> None:
    """What a user without torch runs imports numpy at the heaviest."""
    import subprocess
    import sys

    code = "import sys, paretobit.cli as c; c.find_verbs(); import paretobit.artifact; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = (HEAVY | LIGHT_ONLY) & {name.split(".")[0] for name in loaded}
    assert not heavy, f"importing the command line and the artifact loads {heavy}"
