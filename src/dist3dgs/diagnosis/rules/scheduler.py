"""Rules for messages of the scheduler and the node."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .rule import Hit, Rule, Tier, patterns


def _is_users_cancel(hit: Hit) -> bool:
    """Refuse a step that srun itself cancelled because one of its tasks failed."""
    if re.search(r"\*\*\* STEP ", hit.line.text):
        return not re.search(r"error: .*task[s]? [\d,-]+: (?:Exited|Out|Segm|Killed|Abort|Bus)|Terminating (?:job step|StepId)", hit.before(60))  # fmt: skip
    return True


RULES = (
    Rule(
        name="submission-refused",
        cause="submission_rejected",
        tier=Tier.PROOF,
        looks="`sbatch: error: Batch job submission failed: ...` and the job never starts",
        why="Slurm refused the request: an account, partition, QOS, GPU type or count, or time limit that this "
        "cluster does not have or you may not use.",
        remedy="Compare the request with `sinfo -o '%P %l %G'` and `sacctmgr show assoc user=$USER`.",
        phase="submit",
        patterns=patterns(
            r"(?:Batch job submission|[Jj]ob submit/allocate|[Jj]ob allocation) failed: \S",
            r"(?:srun|salloc): (?:error|fatal): (?:Unable to allocate resources|Job submit/allocate failed|Failed to allocate resources)",
            r"\b(?:sbatch|salloc): (?:error|fatal): (?!.*\b(?:slurm_load_|spank|[Nn]ode failure on|allocation has been revoked))",
            r"\bqsub: (?:submit error|Unknown|Job (?:rejected|violates|exceeds)|Unauthorized|Illegal)",
            r"\bbsub: .*(?:[Rr]ejected|Job not submitted)|Unable to run job: ",
            r"error: Job submit/allocate failed|\b(?:QOS|Assoc)Max\w+(?:Limit|PerUser|PerJob)\b(?!.*\bPending\b)",
        ),
    ),
    Rule(
        name="node-lost",
        cause="node_failure",
        tier=Tier.PROOF,
        looks="`srun: error: Node failure on gpu07`, `DUE TO NODE FAILURE`, state `NODE_FAIL`",
        why="The node itself went away (power, kernel, network, slurmd). What its ranks printed last, often CUDA or "
        "NCCL errors, is a consequence.",
        remedy="Resubmit. If the same node fails twice, exclude it (`#SBATCH --exclude=NODE`) and report it.",
        patterns=patterns(
            r"\b[Nn]ode failure on \S+",
            r"DUE TO NODE FAILURE",
            r"(?:^|[\s|,=:])NODE_FAIL\b",
            r"UNCORRECTABLE MEMORY ERROR AT|DUE TO NODE (?:NOT RESPONDING|DOWN)|(?:^|[\s|,=:])BOOT_FAIL\b",
            r"srun: error: (?:Task launch|Launch)[^\n]*failed[^\n]*: (?:Communication connection failure|Unable to contact slurmd|Zero Bytes|Socket timed out)",
            r"(?:slurmctld|slurmd|srun): error: .*\bNodes? \S+ (?:is )?not responding",
            r"ORTE has lost communication with a remote daemon|lost connection to (?:the )?node\b",
            r"(?i)job (?:preempted|killed|aborted|requeued) \(node failure\)|\b(?:server )?could not connect to MOM\b|node is down, job will be",
        ),
    ),
    Rule(
        name="time-limit",
        cause="time_limit",
        tier=Tier.STOP,
        looks="`CANCELLED AT ... DUE TO TIME LIMIT`, state `TIMEOUT`, while steps were still going on",
        why="The job's time was up before the training was.",
        remedy="Ask for more time (`#SBATCH --time`), or write checkpoints often enough and continue from the last one in the "
        "next job.",
        patterns=patterns(
            r"\bDUE TO TIME LIMIT\b",
            r"(?:JobState=|State: |[|,]\s*|\s)TIMEOUT(?:\s*[|,]|\s+\d+:\d+|\s*\(|\s*$|\s+Reason=)",
            r"\bTERM_(?:RUNLIMIT|DEADLINE|CPULIMIT)\b|PBS: job killed: (?:walltime|cput) \d+ exceeded limit|(?:exceeded|exceeds|reached) (?:its |the |hard )?(?:wall ?(?:clock )?time|wall ?clock|time) ?limit",
            r"(?:^|[\s|,=])DEADLINE\b",
        ),
    ),
    Rule(
        name="preempted",
        cause="preempted",
        tier=Tier.STOP,
        looks="`DUE TO PREEMPTION`, `DUE TO JOB REQUEUE`, state `PREEMPTED`",
        why="A job with higher priority took the nodes.",
        remedy="Continue from the last checkpoint (`#SBATCH --requeue` starts the job again by itself); a partition without "
        "preemption for short deadlines.",
        patterns=patterns(
            r"\bDUE TO (?:PREEMPTION|JOB REQUEUE)\b",
            r"(?:^|[\s|,=:])PREEMPTED\b|\bTERM_(?:PREEMPT|REQUEUE_OWNER|REQUEUE_ADMIN|WINDOW)\b",
            r"(?:this job|job|instance|node|worker|pod) (?:is|was|has been|will be) (?:being )?pre-?empted\b",
            r"\b[Pp]reemption (?:notice|signal|warning) received|[Ss]pot (?:instance )?(?:interruption|reclaim)",
        ),
        unless=re.compile(r"(?i)checkpoint.*(?:if|when|in case)|preemption (?:handler|checker) (?:enabled|installed)"),
    ),
    Rule(
        name="cancelled",
        cause="cancelled",
        tier=Tier.STOP,
        looks="`*** JOB n ON node CANCELLED AT time ***` without `DUE TO`, state `CANCELLED by uid`, `KeyboardInterrupt`",
        why="Somebody stopped it: scancel, Ctrl-C, or an administrator.",
        remedy="Start it again when wanted.",
        patterns=patterns(
            r"\*\*\* (?:JOB|STEP) \S+ (?:ON \S+ )?CANCELLED AT [\dT:-]+(?: DUE TO JOB CANCELLATION| DUE to SIGNAL \w+| (?i:by) (?:uid )?\S+)?\s*\*\*\*",
            r"(?:^|[\s|,=:])CANCELLED(?: by \d+)?(?:\s*[|,+]|\s+\d+:\d+|\s*\(|\s*$|\s+Reason=)",
            r"^(?:\[[^\]]*\]:?\s*)?KeyboardInterrupt\b",
            r"(?i)\bkeyboard ?interrupt(?:ion)?\b[^\n]{0,30}\b(?:exiting|stopping|aborting|terminating)\b",
            r"\b(?:job|run|training) (?:was |has been )?(?:cancelled|canceled|aborted|interrupted) by (?:the )?user\b|\bTERM_(?:OWNER|FORCE_OWNER|ADMIN|FORCE_ADMIN|BUCKET_KILL)\b|\bscancel(?:l?ed)? by\b",
            r"(?i)^job deleted at request of \S+|^\S*job deleted by \S+@",
            r"(?i)(?:\breceived (?:signal )?SIGINT\b|\bgot SIGINT\b|\bSIGINT received\b)[^\n]*(?:exit|stop|terminat|shut|abort)",
        ),
        unless=re.compile(r"(?i)\b(?:if|when|on|once) (?:a )?(?:SIGINT|received|keyboard)|\bwill (?:stop|exit|shut)"),
        accept=_is_users_cancel,
    ),
    Rule(
        name="terminated",
        cause="cancelled",
        tier=Tier.SIGNAL,
        looks="the shell's `Terminated` alone on its line, or `line 12: 4711 Terminated   python train.py`, and no task that failed",
        why="SIGTERM ends a program from outside and politely: `kill`, `scancel` or a launcher that was itself stopped. "
        "The scheduler, which names its reasons, did not say anything.",
        remedy="Ask who stopped it; `sacct -j ID --format=JobID,State,ExitCode,End` tells a cancellation from a limit.",
        patterns=patterns(r"^(?:\S+: line \d+: +\d+ )?Terminated(?:\s*$|\s{2,}\S)"),
    ),
)  # fmt: skip
