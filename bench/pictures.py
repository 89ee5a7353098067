"""One picture in one file: the same figures, the same bytes. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def picture(path: Path, size: tuple[float, float], description: str | None = None) -> Iterator[Any]:
    """Axes to draw on, saved at `path` afterwards; an SVG carries the description."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "paretobit"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"Date": None} | ({"Description": description} if description else {})
    figure.savefig(path, metadata=facts if path.suffix == ".svg" else None)
    pyplot.close(figure)
