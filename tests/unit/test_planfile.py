"""The plan as JSON: what is written comes back, and nothing malformed comes in."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretobit.arch import resolve
from paretobit.arch.spec import EMBED, HEAD
from paretobit.errors import ParetobitError
from paretobit.planfile import Layer, Plan, Settings, check_covers, matrices, read_plan, uniform
from paretobit.scheme import parse
from tests.checkpoints import tiny_config

ARCH = resolve(tiny_config())
UNTIED = resolve(tiny_config(tied=False))
SCHEMES = (
    "w1",
    "w1.58g32",
    "w2g64",
    "w2g64s",
    "w3",
    "w3g128",
    "w4g17z",
    "w5z",
    "w6",
    "w8",
    "w8a8",
    "w2t",
    "w2.5t",
    "bf16",
    "fp32",
)

values = st.one_of(st.booleans(), st.integers(-1000, 1000), st.floats(allow_nan=False, allow_infinity=False), st.text())
layers = st.builds(
    Layer,
    st.sampled_from(SCHEMES).map(parse),
    st.sampled_from(["rtn", "gptq", "my_method"]),
    st.dictionaries(st.sampled_from(["damp", "block", "order"]), values, max_size=3),
)
numbers = st.dictionaries(st.text(max_size=5).filter(str.isprintable), st.floats(-1e9, 1e9), max_size=3)


@given(
    st.builds(
        Plan,
        model=st.text(),
        layers=st.dictionaries(st.text(), layers, max_size=4),
        kv=st.one_of(st.none(), st.just("int8")),
        budget=st.one_of(st.none(), numbers.filter(bool)),
        hardware=st.one_of(st.none(), st.just("cafe")),
        predicted=numbers,
        settings=st.builds(
            Settings,
            calib=st.sampled_from(["self", "stats", "a text.jsonl"]),
            tokens=st.integers(1, 1 << 40),
            seed=st.integers(0, 1 << 40),
            inputs=st.sampled_from(["sequential", "full"]),
            recover=st.sampled_from([None, True, False]),
        ),
    )
)
def test_a_plan_comes_back_from_its_json(plan: Plan) -> None:
    text = plan.to_json()
    assert read_plan(text, "plan") == plan
    assert read_plan(text, "plan").to_json() == text  # so a replay writes the same bytes


def test_a_uniform_plan_decides_on_every_matrix() -> None:
    plan = uniform(ARCH, "hash", "w3g64", None, ("gptq", "gptq", "gptq"), {"gptq": {"damp": 0.1}})
    check_covers(plan, ARCH, "plan")
    assert set(plan.layers) == {name for name, shape in ARCH.shapes().items() if len(shape) == 2}
    assert len(matrices(ARCH)) == 15 and len(matrices(UNTIED)) == 16
    for name, layer in plan.layers.items():
        assert str(layer.scheme) == ("w4g64" if name == EMBED else "w3g64")
        assert (layer.method, layer.params) == ("gptq", {"damp": 0.1})


def test_embedding_and_head_can_be_chosen() -> None:
    plan = uniform(UNTIED, "hash", "w2", "w8g32", ("gptq", "rtn", "gptq"), {"gptq": {"damp": 0.1}})
    assert str(plan.layers[EMBED].scheme) == str(plan.layers[HEAD].scheme) == "w8g32"
    assert (plan.layers[EMBED].method, plan.layers[EMBED].params) == ("rtn", {})
    assert (plan.layers[HEAD].method, plan.layers[HEAD].params) == ("gptq", {"damp": 0.1})


def good() -> dict:
    return json.loads(uniform(ARCH, "hash", "w3g64", None, ("rtn", "rtn", "rtn"), {}).to_json())


def changed(**fields: object) -> dict:
    return {**good(), **fields}


def layer(**fields: object) -> dict:
    facts = good()
    facts["layers"][EMBED].update(fields)
    return facts


BAD: dict[str, Callable[[], object]] = {
    "a list": lambda: [good()],
    "a number": lambda: 1,
    "no version": lambda: changed(version=None),
    "another version": lambda: changed(version=2),
    "a version that is true": lambda: changed(version=True),
    "a flood for a version": lambda: changed(version="v" * 100_000),
    "no model": lambda: changed(model=None),
    "a model that is a number": lambda: changed(model=7),
    "no layers": lambda: changed(layers=None),
    "layers in a list": lambda: changed(layers=[1, 2]),
    "a layer that is a text": lambda: changed(layers={EMBED: "w3"}),
    "a layer that is a list": lambda: changed(layers={EMBED: []}),
    "a layer with a long name": lambda: changed(layers={"n" * 100_000: {}}),
    "no scheme": lambda: layer(scheme=None),
    "a scheme that is a number": lambda: layer(scheme=3),
    "a scheme outside the grammar": lambda: layer(scheme="w7g64"),
    "a scheme of many digits": lambda: layer(scheme="w3g" + "9" * 5000),
    "a scheme of very many bits": lambda: layer(scheme="w" + "9" * 5000),
    "no method": lambda: layer(method=None),
    "a method that is a path": lambda: layer(method="../rtn"),
    "a method that is dotted": lambda: layer(method="os.path"),
    "params in a list": lambda: layer(params=[]),
    "params that are a text": lambda: layer(params="damp"),
    "two of one kind": lambda: changed(transforms=[{"method": "awq"}, {"method": "smoothquant"}]),
    "factors for some taps": lambda: changed(transforms=[{"method": "awq", "taps": ["head_in"]}]),
    "params that are a list": lambda: changed(transforms=[{"method": "awq", "params": [1]}]),
    "params that are objects": lambda: changed(transforms=[{"method": "awq", "params": {"steps": {}}}]),
    "transforms that are a number": lambda: changed(transforms=3),
    "transforms of numbers": lambda: changed(transforms=[1]),
    "a transform without a method": lambda: changed(transforms=[{}]),
    "an unknown transform": lambda: changed(transforms=[{"method": "fold"}]),
    "an unknown field of a transform": lambda: changed(transforms=[{"method": "rotate", "angle": 1}]),
    "a seed below 0": lambda: changed(transforms=[{"method": "rotate", "seed": -1}]),
    "a seed that is true": lambda: changed(transforms=[{"method": "rotate", "seed": True}]),
    "a seed that is too large": lambda: changed(transforms=[{"method": "rotate", "seed": 2**63}]),
    "taps that are a name": lambda: changed(transforms=[{"method": "rotate", "taps": "head_in"}]),
    "taps that are numbers": lambda: changed(transforms=[{"method": "rotate", "taps": [1]}]),
    "a kv that is false": lambda: changed(kv=False),
    "a budget that is a text": lambda: changed(budget="60MB"),
    "a budget of texts": lambda: changed(budget={"bytes": "many"}),
    "a budget with a name of several lines": lambda: changed(budget={"a\nb": 1}),
    "a prediction of nested objects": lambda: changed(predicted={"kl": {}}),
    "a prediction that is not finite": lambda: changed(predicted={"kl": float("inf")}),
    "hardware that is an object": lambda: changed(hardware={}),
    "settings in a list": lambda: changed(settings=[]),
    "an unknown setting": lambda: changed(settings={"threads": 2}),
    "a text without a name": lambda: changed(settings={"calib": ""}),
    "a text whose name is a flood": lambda: changed(settings={"calib": "c" * 100_000}),
    "a text with a line break in its name": lambda: changed(settings={"calib": "a\nb"}),
    "no tokens": lambda: changed(settings={"tokens": 0}),
    "tokens that are true": lambda: changed(settings={"tokens": True}),
    "a seed of text that is a fraction": lambda: changed(settings={"seed": 0.5}),
    "inputs that there are not": lambda: changed(settings={"inputs": "half"}),
    "inputs in a list": lambda: changed(settings={"inputs": []}),
    "a recovery that is a number": lambda: changed(settings={"recover": 1}),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_a_malformed_plan_is_refused_by_name(make: Callable[[], object]) -> None:
    with pytest.raises(ParetobitError, match=r"^some/plan\.json: .*; hint: ") as caught:
        read_plan(json.dumps(make()), "some/plan.json")
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"version": 1', "\0", '{"version": ' + "1" * 5000 + "}"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ParetobitError, match=r"^plan\.json: not valid JSON.*; hint: "):
        read_plan(text, "plan.json")


def test_a_plan_for_another_model_names_the_first_difference() -> None:
    plan = uniform(ARCH, "hash", "w3", None, ("rtn", "rtn", "rtn"), {})
    with pytest.raises(ParetobitError, match=f"{HEAD} is missing from plan.json.*hint:"):
        check_covers(plan, UNTIED, "plan.json")
    larger = uniform(UNTIED, "hash", "w3", None, ("rtn", "rtn", "rtn"), {})
    with pytest.raises(ParetobitError, match=f"{HEAD} is unknown to the model but stands in plan.json.*hint:"):
        check_covers(larger, ARCH, "plan.json")


def test_a_plan_without_settings_was_made_with_the_defaults() -> None:
    facts = good()
    del facts["settings"]
    assert read_plan(json.dumps(facts), "plan.json").settings == Settings()
