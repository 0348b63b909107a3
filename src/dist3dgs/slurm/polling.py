"""Keeping Snakemake's looks at the queue regular.

The Slurm plugin (2.8) looks again after 10 s more each time, up to 180 s, and starts over only when a job
succeeded:
the end of a half-hour run is noticed up to three minutes late, and so is every failure. There is no setting
for it.
One `squeue` for all jobs of a run every few seconds is what the plugin's documentation recommends sites to
expect.
"""


def limit_interval(seconds: float) -> bool:
    """Never let the plugin wait longer than `seconds` between two looks. False if the plugin is absent or
    changed."""
    try:
        from snakemake_executor_plugin_slurm import Executor
        from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

        inherited = RemoteExecutor.next_seconds_between_status_checks
        read, write = inherited.fget, inherited.fset
    except (ImportError, AttributeError):
        return False

    def limited(self: object, value: float) -> None:
        write(self, min(value, seconds))

    Executor.next_seconds_between_status_checks = property(read, limited)
    return True
