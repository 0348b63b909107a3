"""Snakemake's logger plugin `dist3dgs`: follows a study on the terminal (`logger: dist3dgs` in a profile).

Snakemake finds it by its name. What it prints: `dist3dgs.status.follow`.
"""

import logging
import sys
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase


class LogHandler(LogHandlerBase):
    """Hands Snakemake's records to `dist3dgs.status.follow.Terminal`.

    Where more of Snakemake's own output is asked for (dry run, --verbose, --printshellcmds, --debug-dag) it prints
    nothing and leaves the terminal to Snakemake's own handler.
    """

    def __post_init__(self) -> None:
        self._check_command_line()
        from dist3dgs.status.interrupt import INTERRUPTS

        INTERRUPTS.install()
        self.study: Any = None
        s = self.common_settings
        self.steps_aside = True  # until there is a terminal
        if s.dryrun or s.verbose or s.debug_dag or s.printshellcmds:
            return
        from dist3dgs.status.follow import Terminal, stream_of

        self.terminal = Terminal(
            stream_of(s.stdout),
            quiet=frozenset(getattr(q, "name", str(q)).lower() for q in s.quiet or ()),
            show_failed_logs=s.show_failed_logs,
            nocolor=s.nocolor,
            format=self.format,
        )
        self.steps_aside = False

    def _check_command_line(self) -> None:
        """End with a line per mistake: Snakemake makes its loggers before it reads the files of `--configfile`."""
        from dist3dgs.config.load import command_line_problems

        if problems := command_line_problems(sys.argv):
            print(*(f"error: {problem}" for problem in problems), sep="\n", file=sys.stderr)
            sys.exit(2)

    def emit(self, record: logging.LogRecord) -> None:
        from dist3dgs.status.follow import STUDY

        self.study = getattr(record, STUDY, None) or self.study
        if (
            record.levelno >= logging.ERROR
            and self.study
            and (hint := self.study.target_hint(record.getMessage()))
        ):
            print(f"error: {hint}", file=sys.stderr)
            return
        if self.steps_aside:
            return
        try:
            self.terminal.handle(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if not self.steps_aside:
            self.terminal.close()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return not self.steps_aside

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True

    @property
    def has_formatter(self) -> bool:
        return False

    @property
    def needs_rulegraph(self) -> bool:
        return False
