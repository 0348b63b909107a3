"""Rules for communication between ranks: rendezvous, collectives, ports."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .rule import Hit, Rule, Tier, patterns

#: Services beside the training whose port does not matter to it.
SIDE_SERVICE = re.compile(
    r"(?i)tensorboard|jupyter|viewer|viser|gradio|prometheus|wandb|dashboard|streamlit|metrics server"
)
#: torch's warning for each address on which it could not listen; the next one may work.
PORT_WARNING = r"server socket has failed to (?:listen|bind)[^\n]*(?:\berrno: 98\b|EADDRINUSE|already in use)"


def _last_words(hit: Hit) -> bool:
    """Return True if only such warnings stand below: the process did not get past them."""
    return all(not text.strip() or re.search(PORT_WARNING, text) for text in hit.below(8))


#: A rank and the size of its world, in this order or the other.
RANK_OF_WORLD = (
    r"(?i:(?<!node )(?<!local )(?<!group )\b(?:global[_ ])?rank\b['\"]?[ =:(]*(?P<rank>\d{1,6})\)?[^\w\n]{1,6}(?:\w+ ){0,6}world(?:[_ ]?size)?['\"]?[ =:(]*(?:of )?(?P<world>\d{1,6}))\b",
    r"(?i:\bworld[_ ]?size['\"]?[ =:(]*(?P<world>\d{1,6})\)?[^\w\n]{1,6}(?:\w+ ){0,3}(?:global[_ ])?rank['\"]?[ =:(]*(?P<rank>\d{1,6}))\b",
    r"Invalid rank requested : (?P<rank>\d+)/(?P<world>\d+)",
    r"\brank < size\. (?P<rank>\d+) vs\.? (?P<world>\d+)",
    r"Invalid rank (?P<rank>\d+), rank should be in the interval \[0, (?P<last>\d+)\]",
    r"(?i:\brank[ :=]+(?P<more>\d{1,6}) ?(?:/|of) ?(?P<world>\d{1,6})\b)",
    r"\b(?P<more>\d+)/(?P<world>\d+) (?:clients|workers) joined",
    r"\bworld_size=(?P<world>\d+), worker_count=(?P<more>\d+)\b",
)


def _beyond_the_world(hit: Hit) -> bool:
    """Accept a rank that the stated world has no place for, or more members than it has."""
    for source in RANK_OF_WORLD:
        if m := re.search(source, hit.line.text):
            found = {name: int(value) for name, value in m.groupdict().items()}
            world = found.get("world", found.get("last", 0) + 1)
            return found["more"] > world if "more" in found else 0 < world <= found["rank"]
    return True


RULES = (
    Rule(
        name="ranks-beyond-the-world",
        cause="allocation_mismatch",
        tier=Tier.SPECIFIC,
        looks="`Invalid rank requested : 14/2`, gloo's `rank < size. 5 vs 2`, `16/2 clients joined`, `world_size=2, "
        "worker_count=16`, `rank 3 is already in use`; NCCL's `invalid argument` on the tasks from the third one on",
        why="More tasks were started than the program's world has ranks, or two tasks took the same one: the launcher (srun, "
        "torchrun, mpirun) and the program count differently.",
        remedy="Start as many tasks as the world has ranks: one per node under `torchrun`, else one per GPU (`srun "
        "--ntasks-per-node`), and take rank and world size from the same launcher (SLURM_PROCID and SLURM_NTASKS, or RANK and "
        "WORLD_SIZE, never one of each). With `torchrun` give every node its own `--node-rank` or a rendezvous.",
        phase="startup",
        warns=True,
        patterns=patterns(
            *RANK_OF_WORLD[2:],
            *RANK_OF_WORLD[:2],
            r"(?i)\brank\b[^\n]{0,40}(?:>=|is out of range|out of bounds|(?:must|should|has to) be (?:less|smaller|lower) than|(?:is )?(?:not less|larger|greater|bigger) than|exceeds?)[^\n]{0,20}\b(?:world[_ ]?size|number of (?:ranks|processes)|nranks|num_ranks|size of the world)",
            r"(?i)\bworld[_ ]?size\b[^\n]{0,30}(?:smaller|less|lower|fewer) than[^\n]{0,40}(?:tasks|ranks|processes)|(?:more|too many) (?:tasks|ranks|processes)\b[^\n]{0,30}\b(?:than|for)\b[^\n]{0,20}\b(?:world|ranks\b)",
            r"(?i)\brank\b[^\n]{0,20}\b(?:already (?:in use|taken|joined|registered|exists|connected)|is (?:a )?duplicated?)|\bduplicated? (?:global )?ranks?\b|(?:two|multiple|several|more than one) (?:processes|tasks|workers) (?:have|with|use|claim) (?:the same )?rank\b",
        ),
        unless=re.compile(r"(?i)\blora|low[- ]rank|\bmatrix|tensor"),
        accept=_beyond_the_world,
    ),
    Rule(
        name="duplicate-gpu",
        cause="allocation_mismatch",
        tier=Tier.SPECIFIC,
        looks="NCCL's `Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000`, `invalid device ordinal`, "
        "`machine only has`, `Unable to create step`",
        why="More processes than GPUs, or several processes that see the same one: tasks, GPUs and world size do not "
        "agree.",
        remedy="One process per GPU: `torchrun --nproc-per-node` equal to the node's GPUs, one Slurm task per node, "
        "`torch.cuda.set_device(LOCAL_RANK)`; print what each layer believes (SLURM_GPUS_ON_NODE, CUDA_VISIBLE_DEVICES, "
        "WORLD_SIZE).",
        phase="startup",
        patterns=patterns(
            r"^(?:[\w.]+\.)?WorldMismatch: |Duplicate GPU detected|Multiple processes (?:are )?(?:using|on) the same (?:GPU|device)",
            r"(?i)invalid device ordinal|cudaErrorInvalidDevice\b|CUDA_ERROR_INVALID_DEVICE",
            r"(?i)(?:you requested (?:gpu|GPUs?|devices)[^\n]*)?but your machine only has|requested \d+ (?:GPUs?|devices|processes)[^\n]*(?:but|only)[^\n]*(?:available|visible|found)",
            r"srun: error: (?:Unable to create step for job|Unable to create job step)[^\n]*: (?:More processors requested|Requested node configuration|Invalid generic resource|Memory required)",
            r"CPU binding outside of job step allocation|Unable to satisfy cpu bind request",
            r"There are not enough slots available in the system|All nodes which are allocated for this job are already filled",
            r"(?i)--ntasks(?:-per-node)?=\d+[^\n]*(?:does not match|doesn't match|but)|(?:number of (?:tasks|devices|nodes|GPUs|processes)|world[ _]size)[^\n]{0,80}(?:does not match|doesn't match|do not match|mismatch|not equal to|is different from)",
            r"(?i)nproc[-_]per[-_]node[^\n]*(?:greater|more|larger|exceeds)[^\n]*(?:GPU|device)|more (?:processes|ranks|workers) than (?:GPUs|devices)|local[_ ]rank \d+[^\n]*(?:only|exceeds?)[^\n]*(?:GPU|device)",
            r"No CUDA GPUs are available|no CUDA-capable device is detected|allocation mismatch\b",
        ),
        unless=re.compile(r"(?i)warning: number of|batch size"),
    ),
    Rule(
        name="port-in-use",
        cause="port_in_use",
        tier=Tier.SPECIFIC,
        looks="`EADDRINUSE`, `[Errno 98] Address already in use`, `The server socket has failed to listen`",
        why="The rendezvous port is taken: a job that was left behind, another user, or several processes that each try "
        "to be the master.",
        remedy="Take a port derived from the job id, `--rdzv-endpoint=HOST:0` on one node; look for a "
        "leftover with `ss -ltnp | grep PORT`; check that only one process has rank 0.",
        phase="startup",
        patterns=patterns(
            r"\bEADDRINUSE\b",
            r"(?i)address already in use|errno: ?98\b|\[Errno 98\]|code: -98\b|Only one usage of each socket address",
            r"(?i)server socket has failed to listen|server socket has failed to bind",
            r"(?i)\bport \d+ (?:is )?(?:already )?(?:in use|taken|occupied|allocated)|port is already (?:allocated|in use)",
        ),
        unless=SIDE_SERVICE,
    ),
    Rule(
        name="port-warned",
        cause="port_in_use",
        tier=Tier.IGNORED,
        looks="`[W socket.cpp:426] [c10d] The server socket has failed to bind to [::]:29500 (errno: 98 ...)` as a log's last words",
        why="torch warns for each address that it tries. A rank that listens in the end prints more; this one did not.",
        remedy="As above: another port, and a look at who holds this one (`ss -ltnp | grep PORT`).",
        phase="startup",
        patterns=patterns(PORT_WARNING),
        accept=_last_words,
    ),
    Rule(
        name="collective-timeout",
        cause="collective_timeout",
        tier=Tier.COMMUNICATION,
        looks="`Watchdog caught collective operation timeout: WorkNCCL(SeqNum=..., OpType=ALLREDUCE, ...)`, gloo's `Timed "
        "out waiting 1800000ms for recv operation`",
        why="Ranks waited in a collective for one that never came: it died, hangs, is in another collective (compare "
        "SeqNum and OpType of the ranks), or does long work alone.",
        remedy="Look at the rank that is missing from the list or in another collective. If it only needs longer (a "
        "cache, an evaluation on rank 0): raise `init_process_group(timeout=...)`. For each rank's "
        "last collectives: TORCH_FR_BUFFER_SIZE=2000, TORCH_NCCL_DUMP_ON_TIMEOUT=1 and TORCH_FR_DUMP_TEMP_FILE=PREFIX; diagnose "
        "the dumps together with the logs.",
        patterns=patterns(
            r"Watchdog caught collective operation timeout|^(?:[\w.]+\.)?CollectiveTimeout: ",
            r"Work(?:NCCL|Gloo|UCC)\(.*ran for \d+ milliseconds before timing out|Timeout at NCCL work",
            r"Timed out waiting \d+ ?ms for (?:recv|send) operation to complete|Application timeout caused pair closure",
            r"monitored_?[bB]arrier[^\n]*(?:timeout|timed out|failed)|failed to pass monitoredBarrier|Detected rank \d+ hang",
            r"(?i)mismatch between collectives on ranks|collectives? (?:are )?(?:desync|mismatched across ranks)|Detected a? ?desync",
            r"watchdog got stuck for \d+ ?s|dump signal due to a collective timeout|NCCL watchdog thread terminated|ncclTimeout|collective (?:operation )?timed out|HeartbeatMonitor[^\n]*(?:hang|stuck|timed out)",
        ),
        unless=re.compile(r"(?i)timeout (?:is )?set to|TORCH_NCCL_\w+=|nccl_timeout|--"),
    ),
    Rule(
        name="nccl-network",
        cause="nccl_error",
        tier=Tier.COMMUNICATION,
        looks="`NCCL WARN NET/IB : Got completion from peer ... with status=12`, `Call to ibv_... failed`, `no socket "
        "interface found`, `transport retry counter exceeded`",
        why="The network under NCCL failed: link, InfiniBand settings, wrong interface or firewall.",
        remedy="NCCL_DEBUG=INFO; name the interface (NCCL_SOCKET_IFNAME, NCCL_IB_HCA); try NCCL_IB_DISABLE=1 to tell "
        "InfiniBand from the rest; `ibstat` on the nodes named here.",
        patterns=patterns(
            r"NCCL WARN[^\n]*(?:NET/IB|NET/Socket|Net|IB)\S*[^\n]*(?:error|fail|mismatch|Got completion|unable|timed? ?out|refused|reset)",
            r"NCCL WARN[^\n]*(?:Call to \w+[^\n]*failed|no socket interface|Connection (?:refused|reset|closed)|connection (?:refused|reset|closed)|socket(?:Connect|Progress)[^\n]*fail|ibv_|Bootstrap)",
            r"\bibv_\w+(?:\(\))? (?:failed|returned|error)|transport retry counter exceeded|RNR retry counter exceeded|local QP operation err|IBV_WC_\w+_ERR",
            r"collective mismatch error, local size",
            r"NCCL WARN[^\n]*(?:message truncated|[Mm]ismatch|wrong|corrupt)",
        ),
        unless=re.compile(r"(?i)iommu|Could not find|(?<!ib_)plugin|libibverbs\.so|NUMA balancing|GDR|ulimit|deprecated|Failed to open lib|optional"),
    ),
    Rule(
        name="nccl-error",
        cause="nccl_error",
        tier=Tier.COMMUNICATION,
        looks="`NCCL error in: ProcessGroupNCCL.cpp:..., unhandled system error`, `ncclInternalError`, `ncclRemoteError`",
        why="NCCL could not go on: a system call failed, its peers are gone, or versions differ between nodes.",
        remedy="Run again with NCCL_DEBUG=WARN: the NCCL WARN line before this one names the call. Same torch and NCCL on "
        "all nodes? /dev/shm big enough? Interface named (NCCL_SOCKET_IFNAME)?",
        patterns=patterns(
            r"NCCL error|ncclSystemError|ncclInternalError|ncclUnhandledCudaError|ncclInvalidUsage|ncclInvalidArgument|ncclRemoteError|NCCL Error \d+",
            r"unhandled system error, NCCL version|unhandled cuda error|NCCL communicator (?:was|is) aborted|ncclCommAbort(?:ed)?\b|remote process exited or there was a network error",
            r"NCCL WARN[^\n]*(?:Cuda failure|failed|error|Error)",
        ),
        unless=re.compile(r"(?i)iommu|Could not find|(?<!ib_)plugin|libibverbs\.so|NUMA balancing|(?<!run with )NCCL_\w+=|NCCL_ASYNC_ERROR_HANDLING|TORCH_NCCL|Failed to open lib|deprecated"),
    ),
    Rule(
        name="rendezvous",
        cause="rendezvous",
        tier=Tier.COMMUNICATION,
        looks="`RendezvousConnectionError`, `RendezvousTimeoutError`, `DistStoreError: Timed out ... 1/2 clients joined`, "
        "`The client socket has failed to connect`, `Gloo connectFullMesh failed`",
        why="The ranks never found each other, or lost the store that rank 0's node hosts: wrong address or port, a "
        "firewall, a node that started late or ended first.",
        remedy="Look at the node that hosts the store first (a failure there is the root). Otherwise: same "
        "`--rdzv-id`/`--rdzv-endpoint` on all nodes, the head node's `NodeAddr` (`scontrol show node`), "
        "GLOO_SOCKET_IFNAME/NCCL_SOCKET_IFNAME, a longer `--rdzv-conf timeout=`.",
        phase="startup",
        patterns=patterns(
            r"\bRendezvous(?:Connection|Timeout|Closed|State|Parameter)?Error\b",
            r"(?:Timed out|timed out) after \d+ ?(?:s|seconds|ms)? waiting for (?:clients|workers)|\d+/\d+ (?:clients|workers) joined",
            r"connection to the C10d store has failed|connect\(\) timed out\.? Original timeout|(?:[Tt]imeout|timed out) waiting for key|Stop_waiting response is expected|Timed out initializing process group|store_based_barrier_key|store based barrier",
            r"client socket has (?:failed to connect|timed out)|failed to connect to any network address|network addresses of \([^)]*\) cannot be retrieved|\[c10d\][^\n]*(?:failed to (?:connect|listen)|timed out)",
            r"(?i)connectFullMesh failed|gloo[^\n]*(?:connect(?:ion)? (?:timeout|timed out|refused)|Connect timeout)|makeDeviceForHostname|Unable to resolve hostname|gai error",
            r"ncclUniqueId[^\n]*(?:got error|failed)|(?:TCPStore|DistStoreError|DistNetworkError|c10d)[^\n]*(?:[Tt]imed? ?out|Timeout|refused|reset|closed|Broken pipe|Failed to recv|shutdown or crash)|Socket Timeout",
            r"(?i)rendezvous (?:timed out|timeout|failed|closed)|failed to (?:join|complete) (?:the )?rendezvous|EtcdConnectionFailed|ORTE was unable to reliably start",
            r"(?:^|\s)(?:socket\.gaierror|ConnectionRefusedError|gaierror)\b[^\n]*(?:Name or service not known|Connection refused|Temporary failure)",
        ),
        unless=re.compile(r"WARNING\][^\n]*(?:keep-alive|shutdown the rendezvous|has failed to)|has failed to shutdown|Added key: store_based_barrier|Completed store-based barrier|^W\d{4}|hostname of the client socket cannot be retrieved|huggingface|http"),
    ),
    Rule(
        name="peer-lost",
        cause="unknown",
        tier=Tier.SYMPTOM,
        looks="gloo's `Connection closed by peer`, `Connection reset by peer`, `Broken pipe`",
        why="Another rank is gone. The reason is in that rank's log.",
        remedy="Give the logs of all ranks and nodes at once.",
        patterns=patterns(
            r"(?i)gloo[^\n]*(?:closed by peer|reset by peer|read error|broken pipe|pair is closed|connection refused)",
            r"(?i)^\S*(?:Error|Exception): [^\n]*connection (?:was )?(?:closed|reset) by (?:remote )?peer|^(?:RuntimeError|ConnectionResetError|BrokenPipeError|EOFError): (?:\[Errno \d+\] )?(?:Broken pipe|Connection reset)",
        ),
    ),
)  # fmt: skip
