"""Collectives of a step as each strategy issues them, and their seconds from bytes and the machine's links.

A collective takes a fixed time, one hop per message that waits for another, and its bytes over the slowest link on the
way (Hockney 1994; Thakur, Rabenseifner and Gropp 2005 for ring and tree):

ring all-reduce   2 (p - 1)/p S bytes through every worker's link and every node's; 2 (p - 1) hops
tree all-reduce   2 S bytes; 2 log2(p) hops. The faster of both counts, as NCCL chooses
all-to-all        each worker sends S bytes, (g - 1)/p of them inside its node, (p - g)/p through the node's link
shared memory     between CPU ranks of one node: the ring's bytes at the rate of copying, which ranks beyond the cores
                  share, and one meeting per exchange, two of an all-reduce
"""

import math
from dataclasses import dataclass, replace

from ..config.naming import Layout
from .machine import Machine
from .workload import APART, PARAMETER_BYTES, SMALL_PARAMETER_BYTES, Workload

#: Hops inside a node, as a share of one between nodes: NVLink and PCIe peer copies take one or two microseconds.
_LOCAL_HOP_US = 1.5
#: Bytes per visible Gaussian and camera in a sharded step: 12 floats forward, 10 gradients back (parallel/sharded.py).
FORWARD_BYTES, BACKWARD_BYTES = 48, 40
#: Gradients travel in messages of at most this size, larger parameters alone (parallel/replicated.py).
BUCKET_BYTES = 25 * 2**20
#: With `gradient_rows: auto`, where more of the rows are touched all travel (parallel/gradients.py).
AUTO_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class CollectiveCost:
    """One collective operation of a step."""

    op: str
    calls: int
    bytes: float
    """Payload that one rank contributes in all calls."""
    seconds: float
    algorithm: str


def turns(layout: Layout, machine: Machine) -> float:
    """Return how many ranks share a core of a CPU, 1 where each has its own."""
    return (
        max(1.0, layout.workers_per_node / machine.workers_per_node) if machine.accelerator == "cpu" else 1.0
    )


def all_reduce(
    op: str, payload: float, calls: int, layout: Layout, machine: Machine, *, shared: bool = False
) -> CollectiveCost:
    """Sum `payload` bytes, in `calls` messages of equal size, over all ranks.

    shared: through the memory of their node, in parts (parallel/row_parts.py).
    """
    p, nodes = layout.world_size, layout.nodes
    if p == 1:
        return CollectiveCost(op=op, calls=0, bytes=0.0, seconds=0.0, algorithm="none")
    if shared:
        return _shared(op, 2 * (p - 1) / p * payload, payload, 2, layout, machine)
    bandwidth = _bandwidth(layout, machine)
    local, far = _hops(machine)
    ring_hops = 2 * (p - nodes) * local + (2 * (nodes - 1) * far if nodes > 1 else 0)
    tree_hops = (
        2 * math.ceil(math.log2(layout.workers_per_node or 1)) * local + 2 * math.ceil(math.log2(nodes)) * far
    )
    fixed = _fixed_s(layout, machine)
    ring = calls * (fixed + ring_hops) + 2 * (p - 1) / p * payload / bandwidth
    tree = calls * (fixed + tree_hops) + 2 * payload / bandwidth
    seconds, algorithm = min((ring, "ring"), (tree, "tree"))
    return CollectiveCost(op=op, calls=calls, bytes=payload, seconds=seconds, algorithm=algorithm)


def all_to_all(
    op: str,
    sent: float,
    calls: int,
    layout: Layout,
    machine: Machine,
    unevenness: float = 0.0,
    *,
    shared: bool = False,
) -> CollectiveCost:
    """Send `sent` bytes of each rank, spread over all ranks including itself.

    Args:
        unevenness: by how much the fullest rank exceeds the mean; all wait for it.
        shared: through the memory of their node.
    """
    p, g = layout.world_size, layout.workers_per_node
    if p == 1:
        return CollectiveCost(op=op, calls=0, bytes=0.0, seconds=0.0, algorithm="none")
    fullest = sent * (1 + unevenness)
    if shared:
        return _shared(op, fullest * (p - 1) / p, sent * (p - 1) / p, calls, layout, machine)
    inside = fullest * (g - 1) / p / (machine.worker_link_gb_s * 1e9)
    outside = fullest * (p - g) / p * g / (machine.node_link_gb_s * 1e9) if layout.nodes > 1 else 0.0
    local, far = _hops(machine)
    fixed = _fixed_s(layout, machine) + (g - 1) * local + (p - g) * far / g
    return CollectiveCost(
        op=op,
        calls=calls,
        bytes=sent * (p - 1) / p,
        seconds=calls * fixed + max(inside, outside),
        algorithm="pairwise",
    )


def _shared(
    op: str, copied: float, num_bytes: float, meetings: int, layout: Layout, machine: Machine
) -> CollectiveCost:
    """Exchange through the memory of a node. copied: bytes that each rank sends."""
    assert machine.shared_memory_gb_s is not None
    seconds = turns(layout, machine) * copied / (machine.shared_memory_gb_s.value * 1e9)
    return CollectiveCost(
        op=op,
        calls=meetings,
        bytes=num_bytes,
        seconds=meetings * _fixed_s(layout, machine) + seconds,
        algorithm="shared memory",
    )


def _fixed_s(layout: Layout, machine: Machine) -> float:
    """Return seconds of a collective of no bytes."""
    waits_us = machine.turn_us.value if machine.turn_us is not None and turns(layout, machine) > 1 else 0.0
    return 1e-6 * (machine.collective_us.value + waits_us)


def _bandwidth(layout: Layout, machine: Machine) -> float:
    """Return bytes per second of the slowest link of a ring through all ranks."""
    inside = machine.worker_link_gb_s if layout.workers_per_node > 1 else math.inf
    outside = machine.node_link_gb_s if layout.nodes > 1 else math.inf
    return min(inside, outside) * 1e9


def _hops(machine: Machine) -> tuple[float, float]:
    """Return seconds of one hop inside a node and between nodes."""
    return _LOCAL_HOP_US * 1e-6, machine.fabric.hop_us.value * 1e-6


def collectives_of(
    workload: Workload, layout: Layout, machine: Machine, gaussians: float
) -> tuple[CollectiveCost, ...]:
    """List the collectives of one step as the strategy issues them; none on one rank."""
    p = layout.world_size
    if p == 1 or workload.kind == APART:
        return ()
    if workload.kind == "replicated":
        return _gradients(workload, layout, machine, gaussians, p)
    if workload.kind == "local":
        # Parameters and both moments, once in so many steps; the meters' bytes of a step are that share.
        payload = (3 * PARAMETER_BYTES + 4) * gaussians
        average = all_reduce("all_reduce(averages)", payload, 7, layout, machine)
        share = 1 / workload.sync_every
        return (replace(average, bytes=average.bytes * share, seconds=average.seconds * share),)
    if workload.kind == "hybrid" and (shard := workload.holders(layout)) < p:
        inside, across = _groups(layout, shard)
        cameras = workload.global_batch(layout) * shard // p
        # All shards of a node send their gradients through its link at once.
        crowd = min(shard, layout.workers_per_node) if layout.nodes > 1 else 1
        between = _gradients(workload, across, machine, gaussians / shard * crowd, p)
        return *_projections(workload, inside, machine, gaussians, cameras), *between
    return _projections(workload, layout, machine, gaussians, workload.global_batch(layout))


def _groups(layout: Layout, shard: int) -> tuple[Layout, Layout]:
    """Lay out the ranks of one group, and those that hold the same shard in all groups."""
    g = layout.workers_per_node
    if shard <= g:
        return Layout(1, shard), Layout(layout.nodes, max(1, g // shard))
    return Layout(shard // g, g), Layout(layout.world_size // shard, 1)


def _projections(
    workload: Workload, layout: Layout, machine: Machine, gaussians: float, cameras: int
) -> tuple[CollectiveCost, ...]:
    """Exchange what the cameras of `layout`'s ranks see of the Gaussians that these ranks share."""
    p = layout.world_size
    if p == 1:
        return ()
    seen = workload.visible * gaussians / p * cameras
    shared = workload.through_memory(layout, machine)
    counts = all_reduce("all_gather(counts)", 8.0 * cameras * p, 1, layout, machine)
    forward = all_to_all(
        "all_to_all(projections)", seen * FORWARD_BYTES, 1, layout, machine, 0.05, shared=shared
    )
    back = all_to_all(
        "all_to_all(projection gradients)", seen * BACKWARD_BYTES, 1, layout, machine, 0.05, shared=shared
    )
    return counts, forward, back


def _gradients(
    workload: Workload, layout: Layout, machine: Machine, gaussians: float, ranks: int
) -> tuple[CollectiveCost, ...]:
    """Return the all-reduce of gradients: a message of the small parameters while they fit, the large ones alone."""
    if layout.world_size == 1:
        return ()
    if workload.through_memory(layout, machine):
        whole = PARAMETER_BYTES * gaussians
        return (all_reduce("all_reduce(gradients)", whole, 1, layout, machine, shared=True),)
    found: list[CollectiveCost] = []
    rows = gaussians
    wanted = workload.gradient_rows == "touched" or (
        workload.gradient_rows == "auto" and machine.accelerator == "cpu"
    )
    if wanted and workload.compression != "powersgd":
        found.append(all_reduce("all_gather(touched rows)", gaussians / 8, 1, layout, machine))
        touched = 1 - (1 - workload.visible) ** (workload.batch or ranks)  # by any of the step's views
        few = touched <= AUTO_SHARE or workload.gradient_rows == "touched"
        rows *= touched if few else 1.0
    payload, small = rows * PARAMETER_BYTES, rows * SMALL_PARAMETER_BYTES
    calls = 1 if payload <= BUCKET_BYTES else 2 if small <= BUCKET_BYTES else 6
    if workload.compression == "bf16":
        payload /= 2
    elif workload.compression == "powersgd":
        payload = rows * (SMALL_PARAMETER_BYTES + 4 * workload.powersgd_rank)  # only shN is a product
    return *found, all_reduce("all_reduce(gradients)", payload, calls, layout, machine)
