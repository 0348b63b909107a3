"""Errors a person can act on."""

import shlex


class UserError(Exception):
    """A mistake in a file, setting or request, worded for the person who has to fix it.

    The message says what is wrong, where (file or setting), what was expected, and the next command to run.
    The command line prints it without a traceback and exits with status 2.
    """


def snakemake(target: object) -> str:
    """Return the command that makes a target of the workflow, as messages tell a person to type it."""
    return f"snakemake --profile profiles/local {shlex.quote(str(target))}"
