"""Diagnose jobs from their logs.

    from dist3dgs.diagnosis import diagnose
    diagnose([Path("job.out"), Path("job.err")]).cause

Never imports torch; reads logs as streams (see `lines`).
"""

from .verdict import Diagnosis, RuledOut, diagnose, diagnose_attempt

__all__ = ["Diagnosis", "RuledOut", "diagnose", "diagnose_attempt"]
