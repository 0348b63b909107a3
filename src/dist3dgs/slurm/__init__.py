"""Slurm: what the cluster offers, what a job asks for and was given, and what follows an attempt that failed.

====================  =====================================================================================
module                contents
====================  =====================================================================================
`client`              run squeue, sinfo, scontrol, sacct; parse their output
`allocation`          what this job was given: nodes, addresses, GPUs, time left; other jobs on its nodes
`partitions`          what the cluster offers: partitions, in each the nodes of one kind; the user's accounts
`site`, `site_init`   settings that differ from cluster to cluster; a profile written for this one
`resources`           what a point asks for, as Snakemake resources
`queue`               jobs of this study that are queued or running; the guard against doubling one
`submission`          reasons for which sbatch refuses a job, in words; the check before a study
`partition_choice`    the partition where a layout would end first, with `runtime_prediction`
`outcome`             outcomes of attempts that could not report them, and of jobs that never began
`retry`               what follows: train again, close, adopt or wait
`planner`             the next job of each point, decided where Snakemake runs
`executor`            Snakemake's executor: its Slurm plugin's, with regular looks at the queue and the planner
====================  =====================================================================================

Nothing here imports torch.
"""
