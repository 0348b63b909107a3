"""Structure from motion and packing: what became of the photographs."""

from typing import Any

from . import numbers
from .content import Content
from .markup import Html, join, table, tag

_MAX_LEFT_OUT = 50


def section(content: Content) -> Html:
    if not content.ingests:
        return tag("p", "No ingest.json was given: these records were made elsewhere.", class_="missing")
    head = (
        "scene",
        "photographs used",
        "points",
        "reprojection error",
        "size",
        "rotation error",
        "position error",
    )
    return join(
        [
            table(head, [_row(scene, facts) for scene, facts in content.ingests], numbers_from=1),
            _poses(content),
            *(_left_out(scene, facts) for scene, facts in content.ingests),
            *(
                tag("p", f"{scene}: {facts['unreadable']}", class_="bad")
                for scene, facts in content.ingests
                if "unreadable" in facts
            ),
        ]
    )


def _row(scene: str, facts: dict[str, Any]) -> tuple[Any, ...]:
    used, total = facts.get("registered_images"), facts.get("total_images")
    error = number(facts.get("reprojection_error_px"))
    pose = facts.get("pose_error") if isinstance(facts.get("pose_error"), dict) else {}
    return (
        scene,
        None if used is None else f"{used} of {total}" if total is not None else used,
        numbers.count(number(facts.get("num_points"))),
        None if error is None else f"{error:.2f} px",
        _resolution(facts.get("resolution")),
        _pose(pose, "rotation_deg", "°"),
        _pose(pose, "position_percent", " %"),
    )


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _resolution(value: Any) -> str | None:
    if isinstance(value, list | tuple) and len(value) == 2:
        return f"{value[0]} × {value[1]} px"
    if isinstance(value, dict) and {"width", "height"} <= value.keys():
        return f"{value['width']} × {value['height']} px"
    return None if value is None else str(value)


def _pose(pose: Any, name: str, unit: str) -> str | None:
    median, largest = number(pose.get(f"{name}_median")), number(pose.get(f"{name}_max"))
    if median is None:
        return None
    return f"{median:.2g}{unit}" + ("" if largest is None else f" (max {largest:.2g}{unit})")


def _poses(content: Content) -> Html | None:
    if not any(facts.get("pose_error") for _, facts in content.ingests):
        return None
    return tag(
        "p",
        "Pose errors: against the true cameras, which are known for procedural scenes only and never reach "
        "training; after the best similarity alignment, median over the registered photographs. Position in "
        "per cent of the "
        "scene's extent.",
        class_="note",
    )


def _left_out(scene: str, facts: dict[str, Any]) -> Html | None:
    left_out = facts.get("left_out")
    if not isinstance(left_out, list) or not left_out:
        return None
    rows = [
        (entry.get("name"), entry.get("reason")) if isinstance(entry, dict) else (entry, None)
        for entry in left_out[:_MAX_LEFT_OUT]
    ]
    more = len(left_out) - len(rows)
    return join(
        [
            tag("h3", f"{scene}: {len(left_out)} photographs left out"),
            table(("photograph", "reason"), rows),
            tag("p", f"and {more} more, see ingest.json") if more > 0 else None,
        ]
    )
