"""Slurm: what the cluster offers, what a job was given, how ranks are started in it, and what went wrong.

==============  ===========================================================================================
module          says
==============  ===========================================================================================
`commands`      how to call squeue, sinfo, scontrol, sacct, sbatch and read their output
`allocation`    what this job was given: nodes, addresses, GPUs, time left
`plan`          the exact srun and torchrun lines for a layout (pure functions)
`node`          the small program srun starts on every node: network interface, then torchrun
`resources`     what a point asks for, as Snakemake resources
`planner`       the next job of each point, decided where Snakemake runs; what needs no job is finished there
`executor`      Snakemake's executor: its Slurm plugin's, with regular looks at the queue and a say for the planner
`attempts`      the attempts a point has had and why each ended
`unstarted`     attempts that never began: refused, or dead before the launcher started
`turn`          the launcher's turn in a job: wait, train, use a result or close
`retry`         whether to try again, by the reason of the failure and the GPU-hours spent
`jobs`          jobs of this study that are queued or running; the guard against doubling one
`submission`    why sbatch refused, in words; the check before a study
`partitions`    what the cluster offers: partitions, and in each the nodes of one kind
`rights`        accounts and qualities of service that the user may use
`chooser`       where a layout would start and end first
`predict`       how long a run will take, from records
`site`          a profile and its site, written for this cluster
`settings`      the site: what differs from cluster to cluster
`verbs`         the command line
==============  ===========================================================================================

Nothing here imports torch.
"""
