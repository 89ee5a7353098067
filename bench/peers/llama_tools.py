"""llama.cpp's own programs, built once from the sources that llama-cpp-python carries.

    python -m bench.peers.llama_tools [llama-quantize llama-imatrix llama-server]

The source package comes by pip, at the version that the speed comparison installs; cmake and ninja build those programs
alone into the cache folder, in one thread at low priority (some 5 minutes, 15 with the server). Prints where they are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.peers.llama_cpp import VERSION, compiling
from paretobit.work import cache_folder

TOOLS = ("llama-quantize", "llama-imatrix")
SERVER = "llama-server"
OFF = (
    "BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL",
)  # fmt: skip


def tools(names: Sequence[str] = TOOLS) -> dict[str, Path]:
    """name -> program of each of these, built if need be. Ends the program where a build tool is missing."""
    folder = cache_folder() / "peers" / f"llama.cpp-{VERSION}"
    found = {name: folder / name for name in names}
    if missing := [name for name, path in found.items() if not path.exists()]:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"building {', '.join(missing)} of llama-cpp-python {VERSION} into {folder}", file=sys.stderr)
        for needed in ("cmake", "ninja"):
            if shutil.which(needed) is None:
                raise SystemExit(f"building llama.cpp needs {needed}: pip install cmake ninja")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = build(sources(Path(scratch)), Path(scratch) / "build", missing)
            for name in missing:
                (built / name).rename(found[name])
    return found


def sources(folder: Path) -> Path:
    """The tree of llama.cpp inside the source package that pip downloads into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*command, "--dest", folder, f"llama-cpp-python=={VERSION}"], check=True)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz")) / "vendor" / "llama.cpp"


def build(source: Path, folder: Path, names: Sequence[str]) -> Path:
    """The folder of programs. Statically linked: they are moved out of the build."""
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in OFF)]
    log = subprocess.DEVNULL
    configure = ["cmake", "-G", "Ninja", "-S", source, "-B", folder, *flags]
    subprocess.run(configure, check=True, stdout=log, env=compiling())
    subprocess.run(["nice", "-n", "10", "ninja", "-C", folder, "-j", "1", *names], check=True, stdout=log)
    return folder / "bin"


if __name__ == "__main__":
    for made in tools(sys.argv[1:] or TOOLS).values():
        print(made)
