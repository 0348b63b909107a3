"""Machine files: rates, memories and links of one kind of node, each number with its source."""

from pathlib import Path
from typing import Any

from pydantic import Field

from ..config.load import load_yaml
from ..config.models import Settings, validate
from ..errors import UserError

#: Below the config folder.
FOLDER = "machines"
NETWORKS = "networks.yaml"


class Number(Settings):
    """A quantity and where it is from."""

    value: float = Field(gt=0)
    source: str = Field(min_length=1)

    @property
    def assumed(self) -> bool:
        return self.source.startswith("assumed")


class Network(Settings):
    """Links between nodes."""

    port_gb_s: Number = Field(description="GB/s of one port in one direction")
    efficiency: Number = Field(description="share of it that collectives reach")
    hop_us: Number = Field(description="microseconds that a message takes between two nodes")


class Machine(Settings):
    """One kind of node. Units: TFLOP/s, GB (1e9 bytes), GB/s in one direction, GiB of host memory, microseconds."""

    accelerator: str = Field(description="as PyTorch names the device, e.g. NVIDIA H200; cpu")
    workers_per_node: int = Field(ge=1)
    fp32_tflops: Number = Field(description="peak single-precision rate of one worker")
    memory_gb: Number = Field(description="memory of one worker")
    memory_gb_s: Number = Field(description="peak memory bandwidth of one worker")
    link_gb_s: Number = Field(description="link of one worker to the others of its node, one direction")
    link_efficiency: Number = Field(description="share of it that collectives reach")
    collective_us: Number = Field(description="microseconds of a collective of no bytes inside a node")
    shared_memory_gb_s: Number | None = Field(
        None,
        description="what ranks on a CPU exchange through the memory of their node, sent and received by each",
    )
    turn_us: Number | None = Field(
        None, description="microseconds that a collective takes longer where ranks take turns on a core"
    )
    ports_per_node: Number = Field(description="network ports of a node")
    host_memory_gib: Number
    network: str | Network = Field(description="an entry of networks.yaml")
    validated: bool = Field(
        False, description="published or own runs on this kind were compared with the model"
    )

    @property
    def fabric(self) -> Network:
        assert isinstance(self.network, Network)  # load_machine has put it in place of its name
        return self.network

    @property
    def worker_link_gb_s(self) -> float:
        """GB/s that collectives reach between the workers of one node, per worker and direction."""
        return self.link_gb_s.value * self.link_efficiency.value

    @property
    def node_link_gb_s(self) -> float:
        """GB/s that collectives reach between nodes, per node and direction."""
        return self.ports_per_node.value * self.fabric.port_gb_s.value * self.fabric.efficiency.value

    def assumptions(self) -> list[str]:
        """Return names of the numbers that no source states."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        own |= {f"network.{name}": getattr(self.fabric, name) for name in Network.model_fields}
        return [name for name, number in own.items() if isinstance(number, Number) and number.assumed]


def machine_names(config: Path) -> list[str]:
    """List the machine files of a config folder by name."""
    return sorted(p.stem for p in Path(config, FOLDER).glob("*.yaml") if p.name != NETWORKS)


def load_machine(name: str | Path, config: Path = Path("config"), network: str | None = None) -> Machine:
    """Read a machine by name (`config/machines/NAME.yaml`) or by the path of its file.

    Args:
        name: e.g. `h100-nvlink`, or a path that ends in .yaml.
        config: the config folder; networks.yaml is read from it too.
        network: an entry of networks.yaml in place of the machine's own.

    Raises:
        UserError: there is no such machine or network, or a file is not valid.
    """
    path = Path(name) if str(name).endswith(".yaml") else Path(config, FOLDER, f"{name}.yaml")
    if not path.is_file():
        raise UserError(
            f"machine {str(name)!r}: no file {path}; known: {', '.join(machine_names(config)) or 'none'}. "
            "Copy the nearest one and give its path"
        )
    raw: dict[str, Any] = load_yaml(path)
    wanted = network or raw.get("network")
    if isinstance(wanted, str):
        networks = load_yaml(Path(config, FOLDER, NETWORKS))
        if wanted not in networks:
            raise UserError(f"{path}: network {wanted!r} is not in {NETWORKS}; known: {', '.join(networks)}")
        raw["network"] = networks[wanted]
    return validate(Machine, raw, str(path))
