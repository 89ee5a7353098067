"""One file a verb: the function people call from Python, and the command that wraps it."""
