"""Where a model's name leads: a folder, a GGUF file, a packed artifact, `demo:NAME` or `org/name`."""

from __future__ import annotations

from pathlib import Path

from paretobit.checkpoint.base import Checkpoint
from paretobit.errors import ParetobitError

__all__ = ["Checkpoint", "open_model"]

HINT_NAMES = "give a model folder, a .gguf file, demo:smollm2, demo:gemma3, or org/name of the hub"


def open_model(name: str | Path) -> Checkpoint:
    """The model called `name`: a Hugging Face folder, a GGUF file, a packed artifact, `demo:NAME`, or `org/name`.

    A path that exists wins over a name of the hub. Raises ParetobitError naming what is wrong with the model.
    """
    from paretobit.checkpoint.demo import PREFIX, DemoCheckpoint
    from paretobit.checkpoint.hub import HUB_NAME, fetch

    text = str(name)
    if text.startswith(PREFIX):
        return DemoCheckpoint(text)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return _file(path)
    if isinstance(name, str) and HUB_NAME.fullmatch(name) and not name.endswith((".gguf", ".safetensors")):
        return _named(_folder(fetch(name)), name)
    raise ParetobitError(f"there is no model at '{text}'", hint=HINT_NAMES)


def _folder(path: Path) -> Checkpoint:
    from paretobit.checkpoint.gguf import GgufCheckpoint
    from paretobit.checkpoint.hf import HfCheckpoint
    from paretobit.checkpoint.paretoq import TrainedCheckpoint, is_trained
    from paretobit.checkpoint.quantized import QuantizedCheckpoint, is_quantized

    if (path / "paretobit.json").exists():
        from paretobit.artifact import Artifact

        return Artifact(path)
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not any(path.glob("*.safetensors")):
        if len(ggufs) > 1:
            raise ParetobitError(f"{path} holds {len(ggufs)} GGUF files", hint=f"name one of them, such as {ggufs[0]}")
        return GgufCheckpoint(ggufs[0])
    if is_trained(path):
        return TrainedCheckpoint(path)
    return QuantizedCheckpoint(path) if is_quantized(path) else HfCheckpoint(path)


def _file(path: Path) -> Checkpoint:
    from paretobit.checkpoint.gguf import GgufCheckpoint

    if path.suffix == ".safetensors":
        raise ParetobitError(f"{path} holds tensors without a config.json", hint=f"name its folder, {path.parent}")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise ParetobitError(
            f"{path} is a pickle, which can run code when it is read", hint="convert the model to safetensors"
        )
    return GgufCheckpoint(path)


def _named(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """A snapshot's folder is called by its commit; reports shall call the model by its name."""
    checkpoint.name = name
    return checkpoint
