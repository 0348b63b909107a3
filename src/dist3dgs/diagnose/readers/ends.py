"""How programs say that they came to their end: totals, final results, early stopping."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ..facts import FactPattern

_C = re.compile

#: `2024-05-01 10:00:00,123 name INFO: `, `[INFO] `, `name | `: what loggers put before a message.
LOGGER = r"(?:^|[:|\]>] +|INFO +| - )"

FACTS = (
    FactPattern("finish", _C(r"Signaling Trainer to stop\."), lambda m: "early stopping", "last"),
    FactPattern("wrapper_finish", _C(LOGGER + r"(?:Total |Overall )?(?:[Tt]raining|[Rr]un|[Ww]all(?:[- ]clock)?) time(?: was| is)?:? +\d"), lambda m: m[0].strip(" :|]>-"), "last"),
    # Not ` Total time: 0:02:16 (0.17 s / it)`, which a meter prints after every epoch.
    FactPattern("wrapper_finish", _C(r"^\W{0,8}Total (?:run|wall|wall[- ]clock|elapsed|execution)? ?time(?: \(s\))? ?[:=] ?[\d.:]+ ?(?:s|sec|seconds|h)?\s*$"), lambda m: m[0].strip(), "last"),
    FactPattern("wrapper_finish", _C(LOGGER + r"\W{0,8}(?:Final|FINAL) (?:[Tt]est |[Vv]al(?:idation)? |[Ee]val(?:uation)? |[Tt]rain(?:ing)? )?(?:accuracy|acc|psnr|PSNR|mAP|mIoU|loss|score|results?|metrics?)\b"), lambda m: m[0].strip(), "last"),
    FactPattern("wrapper_finish", _C(r"\b(?:LoRA|[Aa]dapter|[Ff]inal|[Tt]rained|[Mm]odel) weights (?:were |was )?(?:saved|written) (?:to|in|at)\b"), lambda m: m[0], "last"),
    FactPattern("wrapper_finish", _C(r"^(?:Epoch \d+: )?[Ee]arly stopping(?: (?:at|after|triggered)\b.*|\.?\s*)$"), lambda m: m[0].strip(), "last"),
)  # fmt: skip
