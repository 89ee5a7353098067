"""The processes that work on one model in lockstep: one alone, or those that torchrun started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretobit import hardware
from paretobit.compress.stats import TapStats
from paretobit.errors import ParetobitError


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes. A world of one does nothing and costs nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def reduce(self, stats: TapStats) -> None:
        """Add up the statistics of all processes, in place, on every process."""
        if self.size == 1:
            return
        import torch.distributed as dist

        counts = torch.tensor([stats.n, stats.paired], dtype=torch.int64, device=_device())
        dist.all_reduce(counts)
        stats.n, stats.paired = counts.tolist()
        for value in (stats.hessian, stats.cross, stats.lag, stats.absmean):
            if value is not None:
                dist.all_reduce(value)
        if stats.absmax is not None:
            dist.all_reduce(stats.absmax, dist.ReduceOp.MAX)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place, on every process."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums of all processes' numbers, place by place."""
        if self.size == 1:
            return list(values)
        found: list[float] = self.total(torch.tensor(values, dtype=torch.float64, device=_device())).tolist()
        return found

    def least(self, value: int) -> int:
        """The smallest `value` of all processes."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        least = torch.tensor([value], dtype=torch.int64, device=_device())
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def share(self, tensor: Tensor, owner: int) -> Tensor:
        """The owner's tensor, on every process."""
        if self.size > 1:
            import torch.distributed as dist

            dist.broadcast(tensor, owner)
        return tensor

    def owners(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Which process keeps each of these, of so many values, so that all keep about as many."""
        kept, found = [0] * self.size, {}
        for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
            found[name] = min(range(self.size), key=kept.__getitem__)
            kept[found[name]] += sizes[name]
        return found

    def lent(self, value: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        """The owner's `value`, float32 of that shape, on every process; others give None. Going backwards, the sum of
        all processes' gradients at it goes on at the owner alone. All processes must lend in one order."""
        if self.size == 1:
            assert value is not None
            return value
        nothing = torch.empty(0, device=_device(), requires_grad=True)
        found: Tensor = _Lent.apply(nothing if value is None else value, tuple(shape), self, owner)
        return found

    def share_ids(self, ids: np.ndarray | None) -> np.ndarray:
        """int64 (n, tokens): the leader's, on every process."""
        if self.size == 1:
            assert ids is not None
            return ids
        shape = torch.tensor((0, 0) if ids is None else ids.shape, device=_device())
        rows, columns = self.share(shape, 0).tolist()
        held = torch.empty(rows, columns, dtype=torch.int64) if ids is None else torch.from_numpy(ids)
        return self.share(held.to(_device()), 0).cpu().numpy()

    def wait(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    @property
    def threads(self) -> int:
        """Threads that each process computes with."""
        return torch.get_num_threads()

    def leave(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


class _Lent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shape: tuple[int, ...], world: World, owner: int) -> Tensor:
        ctx.world, ctx.owner = world, owner
        mine = world.rank == owner
        return world.share(value.detach().contiguous() if mine else value.new_empty(shape), owner)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:  # type: ignore[override]
        import torch.distributed as dist

        added = gradient.clone(memory_format=torch.contiguous_format)
        dist.reduce(added, ctx.owner)
        return (added if ctx.world.rank == ctx.owner else None), None, None, None


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def pick_device(device: str | None) -> str:
    """`device`, or cuda where there is one, else cpu."""
    if device and not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise ParetobitError(f"--device {device} is unknown", hint="choose from cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device and device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        raise ParetobitError(f"--device {device}: torch sees {count} CUDA devices", hint="leave --device out")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def memory_free(device: str | torch.device) -> int:
    """Bytes that a device has left."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return hardware.memory_available()


def fast_in_half(device: str) -> bool:
    """Whether bf16 products are faster than float32 ones: on GPUs, and on processors with instructions for them."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    return not hardware.cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def join() -> World:
    """The world torchrun describes in the environment (gloo on CPUs, nccl on GPUs); one process without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), dist.get_world_size())
