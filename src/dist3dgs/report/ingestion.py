"""Structure from motion and packing: what became of the photographs."""

from typing import Any

from . import numbers
from .content import Content
from .markup import Html, join, table, tag
from .study import StudyFacts

_MAX_LISTED = 50


def section(content: Content) -> Html:
    if not content.ingests:
        missing = tag("p", "No ingest.json was given: these records were made elsewhere.", class_="missing")
        return join([missing, _licences(content.study)])
    head = (
        *("scene", "photographs used", "points", "reprojection error", "size"),
        *("rotation error", "position error"),
    )
    return join(
        [
            table(head, [_row(scene, facts) for scene, facts in content.ingests], numbers_from=1),
            _licences(content.study),
            _poses(content),
            *(_images(scene, facts, "left_out", "reason", "{} left out") for scene, facts in content.ingests),
            *(_images(scene, facts, "notes", "note", "{} with a note") for scene, facts in content.ingests),
            *(
                tag("p", f"{scene}: {facts['unreadable']}", class_="bad")
                for scene, facts in content.ingests
                if "unreadable" in facts
            ),
        ]
    )


def _row(scene: str, facts: dict[str, Any]) -> tuple[Any, ...]:
    images, pose = _mapping(facts, "num_images"), _mapping(facts, "pose_error")
    used, total = images.get("registered"), images.get("total")
    error = number(facts.get("reprojection_error_px"))
    return (
        scene,
        None if used is None else f"{used} of {total}" if total is not None else used,
        numbers.count(number(facts.get("num_points"))),
        None if error is None else f"{error:.2f} px",
        _resolutions(facts.get("resolutions")),
        _pose(pose, "rotation", "deg", "°"),
        _pose(pose, "position", "percent", " %"),
    )


def _licences(study: StudyFacts) -> Html | None:
    if not study.licences:
        return None
    return tag(
        "p", "Photographs: ", "; ".join(f"{scene}, {terms}" for scene, terms in study.licences.items())
    )


def _mapping(facts: dict[str, Any], key: str) -> dict[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _resolutions(value: Any) -> str | None:
    """Return `540 × 360 px`, or each size with how many photographs have it."""
    if not isinstance(value, list):
        return None
    sizes = [r for r in value if isinstance(r, dict) and {"width_px", "height_px"} <= r.keys()]
    texts = [f"{r['width_px']} × {r['height_px']} px" for r in sizes]
    if len(texts) > 1:
        texts = [f"{text} ({r.get('num_images')})" for text, r in zip(texts, sizes, strict=True)]
    return ", ".join(texts[:4]) + (" …" if len(texts) > 4 else "") or None


def _pose(pose: dict[str, Any], name: str, unit: str, sign: str) -> str | None:
    median, largest = number(pose.get(f"{name}_median_{unit}")), number(pose.get(f"{name}_max_{unit}"))
    if median is None:
        return None
    return f"{median:.2g}{sign}" + ("" if largest is None else f" (max {largest:.2g}{sign})")


def _poses(content: Content) -> Html | None:
    if not any(facts.get("pose_error") for _, facts in content.ingests):
        return None
    return tag(
        "p",
        "Pose errors: against the true cameras, which are known for procedural scenes only and never reach training; "
        "after the best similarity alignment, over the registered photographs. Position in per cent of the "
        "trajectory's diameter.",
        class_="note",
    )


def _images(scene: str, facts: dict[str, Any], key: str, value: str, title: str) -> Html | None:
    """Return the photographs that ingest names under `key`, each with its reason or note."""
    entries = facts.get(key)
    if not isinstance(entries, list) or not entries:
        return None
    rows = [
        (entry.get("image"), entry.get(value)) if isinstance(entry, dict) else (entry, None)
        for entry in entries[:_MAX_LISTED]
    ]
    more = len(entries) - len(rows)
    return join(
        [
            tag("h3", f"{scene}: {title.format(len(entries))}"),
            table(("photograph", value), rows),
            tag("p", f"and {more} more, see ingest.json") if more > 0 else None,
        ]
    )
