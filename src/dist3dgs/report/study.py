"""What the report says of the study that no record knows: how it was asked for, what it leaves out, licences."""

from pydantic import Field

from ..spec import Exclusion, Settings
from .markup import Html, tag


class StudyFacts(Settings):
    """flags: of the Snakemake command that made the page, before the targets. licences: by scene.
    code_digest: of the present training code; runs of another are called so."""

    flags: tuple[str, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    licences: dict[str, str] = Field({})
    code_digest: str | None = None


def left_out(facts: StudyFacts) -> Html | None:
    """Points that the config excludes, and why."""
    if not facts.exclusions:
        return None
    return tag(
        "div",
        tag("p", "Left out by the config:"),
        tag("ul", *(tag("li", f"{_points(e)}: {e.reason}") for e in facts.exclusions)),
    )


def _points(exclusion: Exclusion) -> str:
    named = [name for name in (exclusion.scene, exclusion.strategy, exclusion.layout) if name is not None]
    return " ".join(named) or "everything"
