"""How the ranks of a stage connect, exchange values and share the weights."""

import os
import socket
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed

from retain.launchers.stage.ranks import LOOPBACK


def join_ranks(world: int, gpu: bool) -> None:
    """Connect to the other ranks, by the rendezvous that the launcher set in the environment.

    Ranks of one machine connect over the loopback interface: torch's own rendezvous would listen on every interface.
    """
    if world == 1 or distributed.is_initialized():
        return
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    if os.environ["MASTER_ADDR"] != LOOPBACK:
        distributed.init_process_group(backend)
        return
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    listening = socket.create_server((LOOPBACK, port)).detach() if rank == 0 else None
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        LOOPBACK, port, world, rank == 0, master_listen_fd=listening
    )
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)


def strategy_of(world: int, sharded: bool) -> Strategy | str:
    """Lightning's strategy for this many ranks, each with all weights or with a shard of them."""
    if world == 1:
        return "auto"
    if sharded:
        return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    # After its first step, DDP rearranges its buckets, which decide the order of sums: a resumed run would not be
    # bit-identical. With find_unused_parameters DDP keeps the first arrangement. Gradients are views of the buckets, as copies
    # would take as much memory again.
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)


def broadcast(value: Any, world: int) -> Any:
    """The value of rank 0, on every rank."""
    box = [value]
    if world > 1:
        distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(number: int, world: int) -> list[int]:
    """The numbers of all ranks, in the order of the ranks."""
    if world == 1:
        return [number]
    boxes: list[Any] = [None] * world
    distributed.all_gather_object(boxes, number)
    return [int(box) for box in boxes]
