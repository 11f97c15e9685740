"""The processes that train one stage together: how they meet, tell each other things, and share the weights."""

import os
import socket
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed

LOOPBACK = "127.0.0.1"


def join_group(world: int, gpu: bool) -> None:
    """Meet the other ranks, by the rendezvous that the launcher has put into the environment.

    Ranks of one machine meet where nobody else can: torch's own rendezvous would listen on every interface.
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
    """Lightning's strategy for this many ranks that hold all weights each, or parts of them."""
    if world == 1:
        return "auto"
    if sharded:
        return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    # DDP lays its buckets out anew after the first step it sees, and the layout decides the order of the sums: a resumed
    # run would end in other bits. Looking for unused parameters keeps the first layout.
    return DDPStrategy(find_unused_parameters=True)


def broadcast(text: str, world: int) -> str:
    """The chief's text, on every rank."""
    if world == 1:
        return text
    box: list[Any] = [text]
    distributed.broadcast_object_list(box, src=0)
    return str(box[0])


def gather(number: int, world: int) -> list[int]:
    """Every rank's number, in the order of the ranks."""
    if world == 1:
        return [number]
    boxes: list[Any] = [None] * world
    distributed.all_gather_object(boxes, number)
    return [int(box) for box in boxes]
