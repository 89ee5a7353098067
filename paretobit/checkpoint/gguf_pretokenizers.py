"""How text is cut before byte-pair merges, by the name that `tokenizer.ggml.pre` gives it.

The patterns are those of the models' own tokenizer.json (which llama.cpp's src/llama-vocab.cpp quotes beside its
adaptations). A name maps to a sequence of steps of the `tokenizers` library; the byte-level step that follows all of
them is added by the caller.
"""

from __future__ import annotations

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
ASCII_WORDS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _tiktoken(digits: str) -> str:
    return f"{CONTRACTIONS}|{WORDS}|{digits}|{SYMBOLS}|{SPACES}"


def _split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = (_split(_tiktoken(r"\p{N}{1,3}")),)
QWEN2 = (_split(_tiktoken(r"\p{N}")),)
SMOLLM = (DIGITS, _split(GPT2))
PLAIN = (_split(GPT2),)
DEFAULT = (_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(GPT2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"))
FALCON = (
    _split(r"[\p{P}\$\+<=>\^~\|`]+"),
    _split(GPT2),
    _split("[0-9][0-9][0-9]"),
)
DEEPSEEK3 = (
    _split(r"\p{N}{1,3}"),
    _split(r"[一-龥぀-ゟ゠-ヿ]+"),
    _split(rf"{ASCII_WORDS}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"),
)
TEKKEN = (_split(rf"{CASED[0]}|{CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"),)
GPT4O = (
    _split(
        rf"{CASED[0]}{CONTRACTIONS}?|{CASED[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    ),
)
QWEN35 = (
    _split(
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
    ),
)

PRETOKENIZERS: dict[str, tuple[dict[str, object], ...]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "stablelm2", "grok-2"), QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), SMOLLM),
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "mellum", "a.x-4.0", "exaone4", "mpt", "olmo", "jais"), PLAIN),
    **dict.fromkeys(("trillion", "granite-docling", "roberta-bpe"), PLAIN),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), DEEPSEEK3),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), GPT4O),
    "falcon": FALCON,
    "tekken": TEKKEN,
    "qwen35": QWEN35,
    "default": DEFAULT,
}

# A word that is a token as it stands needs no merges (llama.cpp's ignore_merges, "ignore_merges" in tokenizer.json).
WHOLE_WORDS_FIRST = {
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "glm4",
    "tekken",
}
# Adds BOS where `tokenizer.ggml.add_bos_token` is silent.
BOS_BY_DEFAULT = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
# These models' tokenizer.json normalizes the text first; llama.cpp does not, which only shows on decomposed Unicode.
NORMALIZES = {"qwen2", "deepseek-r1-qwen", "megrez", "qwen35", "stablelm2"}
