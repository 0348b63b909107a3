"""Makes `executor: dist3dgs-slurm` known to Snakemake, which finds executors as packages of this name."""

from dist3dgs.slurm.executor import Executor, ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
