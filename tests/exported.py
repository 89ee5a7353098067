"""What exported models must compute: the logits of the packed model's dequantized weights."""

from __future__ import annotations

import numpy as np

from paretobit.artifact import Artifact
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.model import Decoder

IDS = np.random.default_rng(5).integers(3, 300, (2, 40))
EXACT = 2e-5  # of the largest logit: float32 in another order, over two layers some hundred roundings of 2⁻²⁴


def logits(source: Checkpoint) -> np.ndarray:
    """float32 (2, 40, vocab) of the dequantized weights."""
    return Decoder(source).logits(IDS)


def assert_close(found: np.ndarray, packed: Artifact, factor: float = EXACT) -> None:
    """Equal to float accuracy; and the comparison means something: logits differ from token to token by far more."""
    wanted = logits(packed)
    assert found.shape == wanted.shape
    limit = factor * np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= limit, (np.abs(found - wanted).max(), limit)
    assert np.abs(wanted[:, 1:] - wanted[:, :-1]).max() > 10 * limit
