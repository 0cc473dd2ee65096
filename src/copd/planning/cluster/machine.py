"""How fast a machine is: peaks by its data sheet, and the shares of them that are assumed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One GPU of a cluster and its links; bytes and FLOPs are per second."""

    name: str
    flops: float
    """Peak of dense matmuls in the precision of compute."""
    bandwidth: float
    """Peak of its memory, bytes."""
    memory: float
    """Bytes."""
    links: float
    """Peak to other GPUs of its node, bytes in one direction."""
    network: float
    """Peak of a whole node to other nodes, bytes in one direction."""
    node_gpus: int = 8

    pass_efficiency: float = 0.4
    """Share of `flops` in passes without gradient over many tokens."""
    train_efficiency: float = 0.35
    """Share of `flops` in passes with gradient."""
    decode_efficiency: float = 0.25
    """Share of `flops` in decoding that is not bound by memory."""
    bandwidth_efficiency: float = 0.6
    """Share of `bandwidth` in decoding."""
    optimizer_efficiency: float = 0.6
    """Share of `bandwidth` in the optimizer."""
    link_efficiency: float = 0.7
    """Share of `links` and `network` in collective operations."""
    layer_seconds: float = 30e-6
    """Cost of starting one text layer of a decode step."""
    pass_seconds: float = 300e-6
    """Cost of starting one text layer of a pass over many tokens."""
    prompt_seconds: float = 10e-3
    """Building, drawing and verifying what belongs to one problem, on CPUs."""
    store: float = 1e9
    """Bytes per second through the process that runs the training, packing included."""


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("a100", 312e12, 2.039e12, memory=80e9, links=300e9, network=8 * 25e9),
        Machine("h100", 989e12, 3.35e12, memory=80e9, links=450e9, network=8 * 50e9),
        Machine("h200", 989e12, 4.8e12, memory=141e9, links=450e9, network=8 * 50e9),
    )
}
"""Peaks by data sheet: SXM boards, dense bfloat16, nodes of 8 with a network card for each GPU.
Their efficiencies are not measured."""
