"""The one exception users see: what is wrong, and the way out."""

from __future__ import annotations


class ParetobitError(Exception):
    """Bad input or an impossible request. The command line prints it as one line and exits with code 2.

    `message` names the thing that is wrong (file, tensor, option); `hint` says what to do about it.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(f"{message}; hint: {hint}")
        self.message = message
        self.hint = hint
