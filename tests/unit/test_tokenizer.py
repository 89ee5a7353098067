"""The tokenizer of a model folder, and chat templates: what they give, and that hostile ones end."""

from __future__ import annotations

import json
import threading
import time

import pytest
from checkpoints import SPECIAL, TEMPLATE, tiny_tokenizer

from paretobit.errors import ParetobitError
from paretobit.runtime.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


def files(template: str | None = None, **changes: object) -> dict[str, bytes]:
    """The tiny tokenizer's files; `changes` go into tokenizer.json."""
    found = {"tokenizer.json": json.dumps({**json.loads(tiny_tokenizer()), **changes}).encode()}
    if template is not None:
        found["chat_template.jinja"] = template.encode()
    return found


def with_bos(last: bool = False) -> dict[str, object]:
    single = [{"SpecialToken": {"id": SPECIAL[1], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    if last:
        single = single[::-1]
    special = {SPECIAL[1]: {"id": SPECIAL[1], "ids": [1], "tokens": [SPECIAL[1]]}}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


def test_round_trip() -> None:
    tokenizer = Tokenizer(files())
    text = "The capital of France is Paris.\n\tcafé 日本 😀"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 300


def test_bos_is_what_the_tokenizer_puts_first() -> None:
    assert Tokenizer(files()).bos_id is None
    tokenizer = Tokenizer(files(post_processor=with_bos()))
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("a") == [1, *tokenizer.encode("a", add_special=False)]
    assert Tokenizer(files(post_processor=with_bos(last=True))).bos_id is None  # put last, it is no BOS


def test_special_tokens_are_left_out_of_texts() -> None:
    tokenizer = Tokenizer(files())
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"


@pytest.mark.parametrize(
    ("generation", "config", "eos"),
    [
        ({"eos_token_id": 2}, {}, (2,)),
        ({"eos_token_id": [2, 0]}, {}, (2, 0)),
        ({}, {"eos_token": SPECIAL[2]}, (2,)),
        ({}, {"eos_token": {"content": SPECIAL[0], "lstrip": False}}, (0,)),
        ({"eos_token_id": [0]}, {"eos_token": SPECIAL[2]}, (0, 2)),
        ({"eos_token_id": [2, 2, 999, -1, "x", None, True]}, {"eos_token": "nowhere"}, (2,)),
        ({}, {}, ()),
    ],
)
def test_ends_of_generation(generation: dict, config: dict, eos: tuple[int, ...]) -> None:
    more = {
        "generation_config.json": json.dumps(generation).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    assert Tokenizer({**files(), **more}).eos_ids == eos


def test_truncation_and_padding_of_a_training_run_do_not_apply() -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": SPECIAL[0],
    }  # fmt: skip
    plain = Tokenizer(files()).encode("The capital of France is Paris")
    assert len(plain) > 4
    assert Tokenizer(files(truncation=truncation, padding=padding)).encode("The capital of France is Paris") == plain


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{}",
        b"not json",
        b"[" * 100_000,
        b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}',
        b"\xff\xfe",
    ],
)
def test_broken_tokenizers_are_told(broken: bytes) -> None:
    with pytest.raises(ParetobitError, match=r"tokenizer\.json is broken"):
        Tokenizer({"tokenizer.json": broken})


def test_a_missing_tokenizer_is_told() -> None:
    with pytest.raises(ParetobitError, match=r"has no tokenizer\.json; hint: bring"):
        Tokenizer({})


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_broken_small_files_are_told(name: str, content: bytes) -> None:
    with pytest.raises(ParetobitError, match=name):
        Tokenizer({**files(), name: content})


@pytest.mark.parametrize("ids", [[-1], [5, 1 << 32], [5, 1 << 70]])
def test_numbers_that_are_no_tokens_are_refused(ids: list[int]) -> None:
    with pytest.raises(ParetobitError, match="is not a token id"):
        Tokenizer(files()).decode(ids)


def test_the_padding_of_a_head_has_no_text() -> None:
    tokenizer = Tokenizer(files())
    assert tokenizer.decode([300, *tokenizer.encode("hi"), 99_999]) == "hi"


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ParetobitError, match="cannot be tokenized"):
        Tokenizer(files()).encode("a\ud800b")


def test_chat() -> None:
    tokenizer = Tokenizer(files(TEMPLATE))
    prompt = tokenizer.chat([{"role": "system", "content": "Be brief."}, *HELLO])
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode(prompt, add_special=False)[0] == 1


@pytest.mark.parametrize(
    "given", [TEMPLATE, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]]
)
def test_the_template_may_stand_in_the_config(given: object) -> None:
    config = {"tokenizer_config.json": json.dumps({"chat_template": given}).encode()}
    assert Tokenizer({**files(), **config}).chat(HELLO) == Tokenizer(files(TEMPLATE)).chat(HELLO)


def test_without_a_template_chat_is_refused() -> None:
    with pytest.raises(ParetobitError, match="has no chat template; hint: use run"):
        Tokenizer(files()).chat(HELLO)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}", "<|im_start|>Hello<|im_end|>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hello"}'),
        ("{{ {'é': '<'} | tojson(indent=2) }}", '{\n  "é": "<"\n}'),  # no HTML escapes, no \u escapes
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hello"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}y", "y"),
        ("{% if tools %}tools{% endif %}{{ add_generation_prompt }}", "True"),
        ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),  # trim_blocks and lstrip_blocks, as templates expect
        ("{{ strftime_now('%%') }}", "%"),
    ],
)
def test_what_templates_rely_on(template: str, text: str) -> None:
    config = json.dumps({"bos_token": SPECIAL[1], "eos_token": {"content": SPECIAL[2]}}).encode()
    assert Tokenizer({**files(template), "tokenizer_config.json": config}).chat(HELLO) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% break %}", "SyntaxError"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ (1).__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{{ raise_exception.__globals__.os }}", "SecurityError|UndefinedError"),
        ("{% include '/etc/passwd' %}", "TypeError|TemplateNotFound"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ 9**(9**9) }}", "SecurityError"),
        ("{% set n=namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "SecurityError"),
        ("{{ 'a' * 20000000 }}", "writes more than"),
        ("{{ 'a' * 99999999999 }}", "MemoryError"),
        ("{{ '{:99999999999}'.format('a') }}", "MemoryError"),
        ("{{ 'a' | center(99999999999) }}", "MemoryError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "runs more than"),
        ("{% set x = [0] * 100000 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}", "runs more than"),
    ],
)
def test_hostile_templates_end_in_one_error(template: str, message: str) -> None:
    with pytest.raises(ParetobitError, match=f"(?s)chat template does not take these messages: .*({message})"):
        Tokenizer(files(template)).chat(HELLO)


def test_bounds_are_lifted_after_a_template() -> None:
    import resource
    import sys

    limit, trace = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    Tokenizer(files(TEMPLATE)).chat(HELLO)
    with pytest.raises(ParetobitError):
        Tokenizer(files("{{ 'a' * 99999999999 }}")).chat(HELLO)
    assert resource.getrlimit(resource.RLIMIT_AS) == limit and sys.gettrace() is trace


def test_threads_may_chat_at_once() -> None:
    tokenizer = Tokenizer(files(TEMPLATE))
    wanted, found = tokenizer.chat(HELLO), []
    threads = [threading.Thread(target=lambda: found.append(tokenizer.chat(HELLO))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8


def test_long_conversations_stay_within_the_bounds() -> None:
    start = time.monotonic()
    prompt = Tokenizer(files(TEMPLATE)).chat(HELLO * 5000)
    assert prompt.count("Hello") == 5000
    assert time.monotonic() - start < 20  # measured: 0.2 s
