"""What two ranks really put on the wire, in a network namespace that nobody else is in. To be run there, by

unshare --map-root-user --net python -m tests.unit.loopback STRATEGY_JSON SCENE OUT

"""

import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

from dist3dgs.parallel.comm import Communicator

from . import tiny
from .ranks import make_trainer, run_ranks

STEPS = 10
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def loopback_up() -> None:
    """A new namespace's loopback device is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def loopback_bytes() -> int:
    """Bytes sent over this namespace's loopback device so far, all headers included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise OSError("no loopback device in /proc/net/dev")


def measured(comm: Communicator, strategy: dict[str, str], scene: Path, out: Path) -> dict[str, int]:
    """Bytes of ten steps: those of the meters of this rank, those of the device by both."""
    run = tiny.spec(
        "n1g2", strategy=strategy, steps=1000, sh_every=1, densify={"kind": "none", "max_gaussians": 10_000}
    )
    trainer = make_trainer(comm, run, scene, out)
    trainer.start()
    for step in range(1, 4):  # all SH bands are in use from the third step on
        trainer.one_step(step)

    def meters() -> int:
        return sum(m.bytes for (phase, _), m in comm.meters.items() if phase == "step")

    comm.barrier()
    metered, sent = meters(), loopback_bytes()
    comm.barrier()
    for step in range(4, 4 + STEPS):
        trainer.one_step(step)
    comm.barrier()
    return {"metered": meters() - metered, "sent": loopback_bytes() - sent}


if __name__ == "__main__":
    loopback_up()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    strategy, scene, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    print(json.dumps(run_ranks(2, measured, strategy, scene, out)))
