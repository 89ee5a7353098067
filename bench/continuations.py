"""What a model and packed ones write: ten prompts and their greedy continuations, unedited, in Markdown.

    python -m bench.continuations MODEL OUT … [--tokens 32]

The original is computed in float32 by torch, packed models as `paretobit run` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from paretobit import load, open_model
from paretobit.evals.writing import PROMPTS
from paretobit.runtime.tokenizer import Tokenizer


def original(name: str, tokens: int) -> Callable[[str], str]:
    from paretobit.compress.model import Decoder

    source = open_model(name)
    decoder, tokenizer = Decoder(source), Tokenizer(source.companions)

    def go_on(prompt: str) -> str:
        return tokenizer.decode(decoder.generate([tokenizer.encode(prompt)], tokens, eos_ids=tokenizer.eos_ids)[0])

    return go_on


def packed(folder: str, tokens: int) -> tuple[str, Callable[[str], str]]:
    """(name of the folder, what goes on)"""
    model = load(folder)
    return Path(folder).name, lambda prompt: model.generate(prompt, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", nargs="+")
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    writers = [("original", original(given.model, given.tokens)), *(packed(out, given.tokens) for out in given.out)]
    for number, prompt in enumerate(PROMPTS, 1):
        print(f"{number}. {shown(prompt)}\n")
        for name, go_on in writers:
            print(f"   - {name}: {shown(go_on(prompt))}")
        print()


def shown(text: str) -> str:
    """One line of Markdown: `text` with its line breaks spelled."""
    return "`` " + text.replace("\n", "\\n").replace("``", "`\u200b`") + " ``"


if __name__ == "__main__":
    main()
