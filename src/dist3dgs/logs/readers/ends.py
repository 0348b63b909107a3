"""Lines that programs print at their end: totals, final results, early stopping."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ..facts import FactPattern

_C = re.compile

#: Prefixes of loggers: `2024-05-01 10:00:00,123 name INFO: `, `[INFO] `, `name | `.
LOGGER = r"(?:^|[:|\]>] +|INFO +| - )"

FACTS = (
    # Printed at the loop's end as well as after an exception or Ctrl-C; once per launch in a file.
    FactPattern("loop_left", _C(r"\bTotal training time: [^\n]* on hooks\)|" + LOGGER + r"Training took \d+:\d\d:\d\d"), lambda m: m[0].strip(), "last", often=True, placed=True),
    # detectron2 evaluates below that, and the next launch may be appended: both begin with these words.
    FactPattern("begun", _C(r"\bStart inference on \d+ batches|\bStarting training from iteration \d|\bRank of current process: \d+\. World size"), lambda m: m[0], "last", often=True, placed=True),
    FactPattern("results", _C(r"\bcopypaste: (?:-?[\d.]+|nan)(?:,|$)"), lambda m: m[0], "last", often=True, placed=True),
    # A program's own run time: its end, if printed once and not in a loop.
    FactPattern("own_time", _C(r"^(?:Execution time|Time (?:taken|elapsed)|Elapsed time|Wall(?:[- ]clock)? time|Run ?time)(?: \(s(?:ec(?:onds)?)?\))?\s*[:=]\s*[\d.]+ ?(?:s|sec|secs|seconds|min|minutes|h|hours)?\s*$", re.I), lambda m: m[0].strip(), "list", some=True),
    FactPattern("finish", _C(r"Signaling Trainer to stop\."), lambda m: "early stopping", "last"),
    FactPattern("wrapper_finish", _C(LOGGER + r"(?:Total |Overall )?(?:[Tt]raining|[Rr]un|[Ww]all(?:[- ]clock)?) time(?: was| is)?:? +\d(?![^\n]* on hooks\))"), lambda m: m[0].strip(" :|]>-"), "last"),
    # Not ` Total time: 0:02:16 (0.17 s / it)`, which a meter prints after every epoch.
    FactPattern("wrapper_finish", _C(r"^\W{0,8}Total (?:run|wall|wall[- ]clock|elapsed|execution)? ?time(?: \(s\))? ?[:=] ?[\d.:]+ ?(?:s|sec|seconds|h)?\s*$"), lambda m: m[0].strip(), "last"),
    FactPattern("wrapper_finish", _C(LOGGER + r"\W{0,8}(?:Final|FINAL) (?:[Tt]est |[Vv]al(?:idation)? |[Ee]val(?:uation)? |[Tt]rain(?:ing)? )?(?:accuracy|acc|psnr|PSNR|mAP|mIoU|loss|score|results?|metrics?)\b"), lambda m: m[0].strip(), "last"),
    FactPattern("wrapper_finish", _C(r"\b(?:LoRA|[Aa]dapter|[Ff]inal|[Tt]rained|[Mm]odel) weights (?:were |was )?(?:saved|written) (?:to|in|at)\b"), lambda m: m[0], "last"),
    FactPattern("wrapper_finish", _C(LOGGER + r"(?:(?:Final |All )?(?:[Rr]esults|[Pp]redictions) (?:were |are )?(?:saved|written) (?:to|in|at)\b|[Ff]inal (?:checkpoint|weights|model|state|predictions|metrics) (?:was |were |is )?(?:saved|written)\b|(?:Saved|Wrote) (?:the )?final (?:checkpoint|weights|state|predictions|metrics|results)\b)"), lambda m: m[0].strip(" :|]>-"), "last"),
    FactPattern("wrapper_finish", _C(r"^(?:Epoch \d+: )?[Ee]arly stopping(?: (?:at|after|triggered)\b.*|\.?\s*)$"), lambda m: m[0].strip(), "last"),
)  # fmt: skip
