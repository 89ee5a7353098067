"""A graph under construction: nodes as they come, weights straight into a file beside it.

Weights lie outside the protocol buffer, which may hold 2 GB only; they are written one at a time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

OPSET, IR_VERSION = 21, 10  # blocked DequantizeLinear; what ONNX Runtime reads since 1.18
MICROSOFT = "com.microsoft"
ALIGNMENT = 4096  # of a weight in its file, so that it can be mapped
SMALL = 1 << 10  # bytes up to which a constant stays in the graph

Input = str | np.ndarray | np.generic  # the output of a node, or a constant


class Graph:
    """`graph(OP, inputs…, attribute=…)` adds a node and returns the name of its one output; arrays are constants."""

    def __init__(self, data: Path) -> None:
        import onnx

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._data = open(data, "wb")  # noqa: SIM115 (closed by save and abort)
        self._location = data.name

    def __call__(
        self, op: str, *inputs: str | np.ndarray | np.generic, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """The output's name, or the outputs' names where there are several."""
        domain = MICROSOFT if op == "MatMulNBits" else ""
        names = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs]
        made = [self._fresh(name or op) for _ in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(op, names, made, name=made[0], domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def _fresh(self, name: str) -> str:
        self._names[name] = number = self._names.get(name, -1) + 1
        return f"{name}.{number}" if number or "/" not in name else name

    def constant(self, array: np.ndarray) -> str:
        """A small constant; equal ones are one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            assert array.nbytes <= SMALL
            self._constants[key] = name = self._fresh("constant")
            self._weights.append(self._onnx.numpy_helper.from_array(array, name))
        return self._constants[key]

    def weight(self, name: str, array: np.ndarray) -> str:
        """A weight, written to the file at once."""
        helper = self._onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        start = -(-self._data.tell() // ALIGNMENT) * ALIGNMENT
        self._data.seek(start)
        self._data.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        found = self._onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
        found.data_location = self._onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", start), ("length", array.nbytes)):
            found.external_data.add(key=key, value=str(value))
        self._weights.append(found)
        return name

    def input(self, name: str, kind: type, shape: tuple[int | str, ...]) -> str:
        self._inputs.append(self._described(name, kind, shape))
        return name

    def output(self, value: str, name: str, kind: type, shape: tuple[int | str, ...]) -> None:
        """Let the graph give `value` under `name`."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=f"{name}/output"))
        self._outputs.append(self._described(name, kind, shape))

    def _described(self, name: str, kind: type, shape: tuple[int | str, ...]) -> Any:
        helper = self._onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), list(shape))

    def save(self, path: Path, name: str, producer: str) -> None:
        """Write the graph, after its weights."""
        helper = self._onnx.helper
        self.close()
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._weights)
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=IR_VERSION, producer_name=producer)
        self._onnx.save(model, str(path))

    def close(self) -> None:
        if not self._data.closed:
            self._data.flush()
            os.fsync(self._data.fileno())
            self._data.close()
