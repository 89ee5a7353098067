"""What a base install downloads: the wheels of paretobit without extras and of everything it needs, summed.

    python -m bench.install_size [--wheel FILE]

pip resolves and downloads in a fresh virtual environment, for this interpreter and machine. Without --wheel the project
is built first, from the repository's root.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LIMIT = 40_000_000


def wheels(what: str = ".") -> dict[str, int]:
    """Wheel's file name -> bytes of all that installing `what` (a project folder or a wheel) downloads."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, made = Path(scratch) / "venv", Path(scratch) / "wheels"
        venv.create(folder, with_pip=True)
        command = [folder / "bin" / "python", "-m", "pip", "wheel", "--quiet", "--wheel-dir", made, what]
        subprocess.run([*command, "--disable-pip-version-check"], check=True, stdout=sys.stderr)
        return {path.name: path.stat().st_size for path in sorted(made.glob("*.whl"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", default=".", help="a built wheel of paretobit")
    found = wheels(parser.parse_args().wheel)
    for name, size in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.2f} MB  {name}")
    total = sum(found.values())
    print(f"{total / 1e6:8.2f} MB  in all, {'under' if total < LIMIT else 'NOT under'} {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
