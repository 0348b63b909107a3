"""A Slurm job's `.out`/`.err`: the environment a script prints, its own header and footer, srun and slurmstepd."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ...units import expand_hosts
from ..facts import MAX_NODES, FactPattern, number

_C = re.compile


def _gpu_list(m: re.Match[str]) -> int:
    return len([g for g in m[1].split(",") if g.strip()])


def _num_nodes(m: re.Match[str]) -> int:
    """Count the nodes of `4(x2),2`: two with 4 each and one with 2."""
    parts = re.findall(r"\d+(?:\(x(\d{1,5})\))?", m[1])
    return sum(int(times or 1) for times in parts)


FACTS = (
    FactPattern("job_id", _C(r"\bSLURM_JOB_?ID[=:]\s*(\d{1,12})\b")),
    FactPattern("job_id", _C(r"^\s*Job ?ID\s*[:=]\s*(\d{1,12}(?:_\d+)?)\b", re.I)),
    FactPattern("job_id", _C(r"\*\*\* (?:JOB|STEP) (\d{1,12})(?:\.\w+)? ON ")),
    FactPattern("job_id", _C(r"StepId=(\d{1,12})[.\s]")),
    FactPattern("job_id", _C(r"Submitted batch job (\d{1,12})\b")),
    FactPattern("job_name", _C(r"\bSLURM_JOB_NAME=(\S+)")),
    FactPattern("job_name", _C(r"^Job(?: [Nn]ame)?: ([^\n]{1,80}?)\s*$")),
    FactPattern("nodes", _C(r"\bSLURM_(?:JOB_)?NODELIST[=:]\s*(\S+)"), lambda m: tuple(expand_hosts(m[1], MAX_NODES))),
    FactPattern("nodes", _C(r"^\s*(?:Node ?[Ll]ist|Nodes?(?: list)?|Hosts?(?:name)?|Running on(?: (?:host|node))?)\s*[:=]\s*([A-Za-z][\w.,\[\]-]*)\s*$"), lambda m: tuple(expand_hosts(m[1], MAX_NODES))),
    FactPattern("worker_host", _C(r"\bSLURMD_NODENAME[=:]\s*([\w.-]+)"), lambda m: m[1], "set", some=True),
    FactPattern("worker_host", _C(r"^srun: error: ([A-Za-z][\w.-]*): tasks? \d"), lambda m: m[1], "set", some=True),
    FactPattern("worker_host", _C(r"\*\*\* (?:JOB|STEP) \S+ ON ([A-Za-z][\w.-]*) "), lambda m: m[1], "set", some=True),
    # A step that runs on one of the job's nodes has smaller numbers than the job.
    FactPattern("num_nodes", _C(r"\bSLURM_(?:JOB_NUM_|N)NODES[=:]\s*(\d{1,5})\b"), lambda m: int(m[1]), "max"),
    FactPattern("num_nodes", _C(r"\bSLURM_(?:JOB_CPUS|TASKS)_PER_NODE[=:]\s*([\d(),x]+)"), _num_nodes, "max"),
    FactPattern("num_nodes", _C(r"^#SBATCH\s+(?:-N|--nodes)[= ](\d{1,5})\b"), lambda m: int(m[1]), "max"),
    FactPattern("gpus_per_node", _C(r"\bSLURM_GPUS_(?:ON|PER)_NODE[=:]\s*(?:\w+:)*(\d{1,3})\b"), lambda m: int(m[1])),
    FactPattern("gpus_per_node", _C(r"\bSLURM_(?:JOB|STEP)_GPUS[=:]\s*([\d,]+)"), _gpu_list),
    FactPattern("gpus_per_node", _C(r"^#SBATCH\s+--gpus-per-node[= ](?:\w+:)*(\d{1,3})\b"), lambda m: int(m[1])),
    FactPattern("gpus_per_node", _C(r"^#SBATCH\s+--gres[= ]gpu(?::[\w.-]+)*?:(\d{1,3})\b"), lambda m: int(m[1])),
    FactPattern("gpus_asked", _C(r"^#SBATCH\s+(?:-G|--gpus)[= ](?:\w+:)*(\d{1,5})\b"), lambda m: int(m[1])),
    FactPattern("gpus_asked", _C(r"\bSLURM_GPUS[=:]\s*(?:\w+:)*(\d{1,5})\b"), lambda m: int(m[1])),
    FactPattern("gpus_asked", _C(r"gres/gpu(?::[\w.-]+)?=(\d{1,5})\b"), lambda m: int(m[1])),
    FactPattern("gpus_asked", _C(r"^(?:Job(?: [Nn]ame)?\s*:\s*)(\d{1,5})[ -]?[xX]?[ -]?GPUs?\b"), lambda m: int(m[1])),
    FactPattern("gpus_asked", _C(r"^\W*(?:Allocated|Requested|Number of|Num|Total|Assigned)[ _]?GPUs?(?: allocated| requested)?\s*[:=]\s*(\d{1,5})\b", re.I), lambda m: int(m[1])),
    FactPattern("visible_devices", _C(r"\bCUDA_VISIBLE_DEVICES[=:]\s*([\d,]+)\s*$"), _gpu_list),
    FactPattern("duration_s", _C(r"^\W*(?:Duration|Total time|Elapsed(?: time)?|Runtime|Wall ?time)\s*:\s*([\d.]+) ?s(?:ec(?:onds?)?)?\b", re.I), lambda m: number(m[1]), "last"),
    FactPattern("mark", _C(r"^\W*(?:Start(?:ed|ing)?(?: time| at)?|Job started(?: at)?|Begin)\s*(?::|at|on)"), lambda m: "start", "list"),
    FactPattern("mark", _C(r"^\W*(?:End(?:ed)?(?: time| at)?|Finished(?: at)?|Job (?:finished|ended)(?: at| on)?)\s*(?::|at|on)"), lambda m: "end", "list"),
    FactPattern("wrapper_finish", _C(r"^\W{0,40}(?:\[[^\]]{1,60}\]\W{0,9}){0,4}(?:Training|Job|Run|Script|Experiment|Evaluation|All jobs?|Pipeline)s? (?:is |was |has |are )?(?:complete|completed|done|finished|ended)(?: successfully)?\b", re.I), lambda m: m[0].strip(" =#*"), "last"),
    FactPattern("wrapper_finish", _C(r"^\W*(?:All done|Done|Finished|done|Success)\W*$"), lambda m: m[0].strip(), "last"),
    FactPattern("wrapper_finish", _C(r"\b(?:training|pipeline|reconstruction|optimi[sz]ation) (?:completed|finished|complete)(?: successfully)?\b(?! with (?:error|exit code [1-9]))", re.I), lambda m: m[0], "last"),
    FactPattern("wrapper_finish", _C(r"\b(?:finished|completed|done|complete) (?:with )?training\b|\btraining (?:is )?done\b|^(?:Total )?[Tt]raining time\b|\bFinished after \d|^JOB DONE", re.I), lambda m: m[0], "last"),
    FactPattern("wrapper_finish", _C(r"\b(?:[Ss]av(?:ed|ing) (?:the )?(?:final |trained |best )?(?:model|weights|point cloud|ply)\b|[Mm]odel (?:was )?saved (?:to|in|at)\b)"), lambda m: m[0], "last"),
    FactPattern("wrapper_finish", _C(r"^(?:Final |Best |Test )(?:test |val(?:idation)? |top-?1 )?(?:acc(?:uracy)?|psnr|loss|score)\w*\s*[:=]", re.I), lambda m: m[0], "last"),
    FactPattern("wrapper_finish", _C(r"^real\s+\d+m[\d.]+s\s*$|^wandb: Run summary"), lambda m: m[0], "last"),
    FactPattern("finish", _C(r"^Successfully completed\.\s*$"), lambda m: "LSF: successfully completed", "last"),
    FactPattern("gpus_asked", _C(r'^#BSUB -gpu "num=(\d{1,4})'), lambda m: int(m[1])),
    FactPattern("job_id", _C(r"^Subject: Job (\d{1,12}):")),
    FactPattern("nodes", _C(r"^Job was executed on host\(s\) <(?:\d+\*)?([\w.-]+)>"), lambda m: (m[1],)),
    FactPattern("duration_s", _C(r"^\s+Run time :\s+(\d+) sec\."), lambda m: number(m[1]), "last"),
    FactPattern("exit_code", _C(r"^\W*(?:Job |Script |Process |Training )?(?:finished with |exited with |ended with )?exit[ _]?(?:code|status)[ :=]+(\d{1,3})\s*$", re.I), lambda m: int(m[1]), "last"),
)  # fmt: skip
