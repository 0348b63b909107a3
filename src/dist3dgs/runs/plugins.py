"""Find causes, rules and log readers that other distributions add.

An installed distribution names modules in the entry point group `dist3dgs.logs`. Such a module looks like one of ours:
`CAUSES` as in `runs/causes.py`, `RULES` as in `diagnosis/rules/`, and a log reader as in `logs/readers/`.
"""

from functools import cache
from types import ModuleType
from typing import Any

from ..errors import UserError

GROUP = "dist3dgs.logs"


@cache
def modules() -> tuple[ModuleType, ...]:
    """Import the modules of all plug-ins, ordered by name. Raises `UserError` for one that cannot be imported."""
    from importlib.metadata import entry_points

    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            found.append(point.load())
        except Exception as e:
            raise UserError(
                f"plug-in {point.name} ({point.value}) cannot be imported: {type(e).__name__}: {e}; "
                f"repair or uninstall the distribution that names it in its entry points `{GROUP}`"
            ) from None
    return tuple(found)


def added(name: str) -> list[Any]:
    """Collect what the plug-ins list under a module attribute such as `RULES`."""
    return [item for module in modules() for item in getattr(module, name, ())]
