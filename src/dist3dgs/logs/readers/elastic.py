"""torchrun / torchelastic, PyTorch Lightning, Hugging Face and Megatron: world size, ranks, outcome."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ..facts import FactPattern, number

_C = re.compile

FACTS = (
    FactPattern("world_size", _C(r"\bworld[_ ]size['\"]?\s*[=:]\s*(\d{1,6})\b", re.I), lambda m: int(m[1]), "max"),
    FactPattern("world_size", _C(r"distributed_backend=\w+, with (\d{1,6}) processes|Starting with (\d{1,6}) processes"), lambda m: int(m[1] or m[2]), "max"),
    FactPattern("world_size", _C(r"MEMBER: \d{1,6}/(\d{1,6})\b"), lambda m: int(m[1]), "max"),
    FactPattern("world_size", _C(r"using world size: (\d{1,6})"), lambda m: int(m[1]), "max"),
    FactPattern("world_size", _C(r"\brank \d{1,6} nranks (\d{1,6}) "), lambda m: int(m[1]), "max"),
    FactPattern("rank", _C(r"\b[Rr]ank[ =:]+(\d{1,6})\b"), lambda m: int(m[1]), "set", often=True),
    FactPattern("rank", _C(r"\[(?:rank|default)(\d{1,6})\]:"), lambda m: int(m[1]), "set", some=True),
    FactPattern("worker_host", _C(r"^\s*host\s+: (\S+)"), lambda m: m[1], "set", some=True),
    FactPattern("worker_host", _C(r"^\[?([A-Za-z][\w.-]*):\d+:\d+\]? \[\d+\] NCCL "), lambda m: m[1], "set", some=True),
    FactPattern("finish", _C(r"worker group successfully finished|Local worker group finished \(WorkerState\.SUCCEEDED\)"), lambda m: "worker group succeeded", "last"),
    FactPattern("finish", _C(r"`?Trainer\.fit`? stopped: `?max_(?:epochs|steps|time)=\S+ reached"), lambda m: "Trainer.fit stopped at its maximum", "last"),
    FactPattern("finish", _C(r"'train_runtime': [\d.]+|\btrain_runtime\s+=\s+\S+"), lambda m: "train_runtime reported", "last"),
    FactPattern("finish", _C(r"Training completed\. Do not forget to share your model"), lambda m: "Training completed", "last"),
    FactPattern("finish", _C(r"\[after training is done\]|exiting program at (?:iteration|\d)"), lambda m: "trainer's end of training", "last"),
    FactPattern("finish", _C(r"\[launch\.py:\d+:main\] Process \d+ exits successfully"), lambda m: "launcher: process exits successfully", "last"),
    FactPattern("train_s", _C(r"'train_runtime': ([\d.]+)"), lambda m: number(m[1]), "last"),
    # The agent leaves its rendezvous only after its workers ended; the warning alone is harmless.
    FactPattern("teardown", _C(r"has failed to shutdown the rendezvous"), lambda m: "rendezvous closed", "last"),
    FactPattern("teardown", _C(r"NCCL INFO comm 0x[0-9a-f]+ .*(?:Destroy|Abort) COMPLETE|NCCL INFO \[Service thread\] Connection closed by localRank"), lambda m: "NCCL communicators closed", "last"),
    FactPattern("teardown", _C(r"destroy_process_group"), lambda m: "process group destroyed", "last"),
    FactPattern("gpu_peak_gib", _C(r"\bmax allocated: ([\d.]+)"), lambda m: number(m[1]) / 1024, "max", often=True),
    FactPattern("gpu_peak_gib", _C(r"\bpeak (?:GPU )?memory(?: usage)?[ :=]+([\d.]+) ?GiB", re.I), lambda m: number(m[1]), "max", often=True),
    FactPattern("gpu_peak_gib", _C(r"\bmax mem: (\d+)\b"), lambda m: number(m[1]) / 1024, "max", often=True),
)  # fmt: skip
