"""`org/name`: a model of the Hugging Face hub, fetched once into its own cache by the huggingface_hub package."""

from __future__ import annotations

import re
from pathlib import Path

from paretobit.errors import ParetobitError
from paretobit.progress import say

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What a reader needs and nothing that runs code: no pickles, no Python, no second copies in other formats.
WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "LICENSE*", "NOTICE*"]
UNWANTED = ["*/*"]  # subfolders hold other formats (onnx/, original/)
HINT_OFFLINE = "without a network, copy the model's folder here and give its path"


def fetch(name: str) -> Path:
    """The local folder of model `name` ("org/model"), fetched now if it is not in the hub's cache.

    Raises ParetobitError without the package, without a network and for names that the hub does not know.
    """
    if not HUB_NAME.fullmatch(name):
        raise ParetobitError(f"'{name}' is not a model of the hub", hint="write org/name, or give the path of a folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ParetobitError(
            f"fetching {name} needs the huggingface_hub package", hint="pip install huggingface_hub"
        ) from None
    say(f"looking for {name} on the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except Exception as why:  # the package lets through whatever its HTTP client and the file system raise
        raise _explained(name, why) from why


def _explained(name: str, why: Exception) -> ParetobitError:
    kind = type(why).__name__
    reason = str(why).strip().splitlines()[0][:200] if str(why).strip() else kind
    if kind == "GatedRepoError":
        return ParetobitError(f"{name} is gated", hint="accept its terms on its page, then log in with `hf auth login`")
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return ParetobitError(
            f"the hub has no model {name}", hint="check the name; private models need `hf auth login`"
        )
    if isinstance(why, OSError) and why.errno is not None and kind == "OSError":
        return ParetobitError(
            f"{name} cannot be stored: {why.strerror}", hint="free some space, or set HF_HOME elsewhere"
        )
    return ParetobitError(f"{name} cannot be fetched: {kind}: {reason}", hint=HINT_OFFLINE)
