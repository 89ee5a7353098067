"""Drives llama-cpp-python's low-level API: commands in JSON lines on stdin, answers on stdout.

Run by llama_cpp.py in the peer's interpreter. Needs nothing of paretobit.
"""

import ctypes
import json
import sys
import time

import llama_cpp as api

model = context = None


def quantize(source, out, type):
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{type}")
    if api.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp does not quantize to {type}")


def load(path, threads, length):
    """A context of `length` positions at llama.cpp's defaults: fp16 cache, memory-mapped weights."""
    global model, context
    close()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx = length
    params.n_threads = params.n_threads_batch = threads
    context = model and api.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp does not load {path}")


def close():
    global model, context
    if context:
        api.llama_free(context)
    if model:
        api.llama_model_free(model)
    model = context = None


def feed(ids):
    array = (api.llama_token * len(ids))(*ids)
    if api.llama_decode(context, api.llama_batch_get_one(array, len(ids))):
        raise RuntimeError("llama_decode failed")
    api.llama_synchronize(context)


def round(prompt, tokens):
    """Seconds for the prompt, and for the tokens one by one after it, in an empty cache."""
    api.llama_memory_clear(api.llama_get_memory(context), False)
    start = time.perf_counter()
    if prompt:
        feed(prompt)
    middle = time.perf_counter()
    for token in tokens:
        feed([token])
    return [middle - start, time.perf_counter() - middle]


def logits(ids):
    """Logits after the last of `ids`."""
    round(ids, [])
    count = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    return api.llama_get_logits_ith(context, -1)[:count]


def tokenize(text):
    """The loaded model's tokens of a text, BOS and special tokens as it says."""
    raw, vocab = text.encode(), api.llama_model_get_vocab(model)
    array = (api.llama_token * (len(raw) + 8))()
    count = api.llama_tokenize(vocab, raw, len(raw), array, len(array), True, True)
    if count < 0:
        raise RuntimeError("llama_tokenize failed")
    return array[:count]


def about():
    return api.llama_print_system_info().decode()


@api.llama_log_callback
def silent(level, text, user_data):
    pass


def main():
    api.llama_log_set(silent, ctypes.c_void_p())
    api.llama_backend_init()
    commands = {f.__name__: f for f in (quantize, load, round, logits, tokenize, about)}
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": commands[name](*arguments)}
        except RuntimeError as why:
            answer = {"error": str(why)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
