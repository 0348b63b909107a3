"""Find what other distributions add by entry points.

An installed distribution names modules in an entry point group; each lists what it adds under an agreed name:

* `dist3dgs.logs`: `CAUSES` as in `runs/causes.py`, `RULES` as in `diagnosis/rules/`, log readers as in `logs/readers/`;
* `dist3dgs.metrics`: `METRICS` as in `runs/metrics.py`;
* `dist3dgs.figures`: each module is a figure as in `figures/`.
"""

from functools import cache
from types import ModuleType
from typing import Any

from ..errors import UserError

GROUP = "dist3dgs.logs"


@cache
def modules(group: str = GROUP) -> tuple[ModuleType, ...]:
    """Import the modules of all plug-ins, ordered by name. Raises `UserError` for one that cannot be imported."""
    return tuple(named_modules(group).values())


@cache
def named_modules(group: str) -> dict[str, ModuleType]:
    """Import the modules of all plug-ins of a group, by the entry points' names and ordered by them.

    Raises `UserError` for one that cannot be imported.
    """
    from importlib.metadata import entry_points

    found = {}
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        try:
            found[point.name] = point.load()
        except Exception as e:
            raise UserError(
                f"plug-in {point.name} ({point.value}) cannot be imported: {type(e).__name__}: {e}; "
                f"repair or uninstall the distribution that names it in its entry points `{group}`"
            ) from None
    return found


def added(name: str, group: str = GROUP) -> list[Any]:
    """Collect what the plug-ins list under a module attribute such as `RULES`."""
    return [item for module in modules(group) for item in getattr(module, name, ())]
