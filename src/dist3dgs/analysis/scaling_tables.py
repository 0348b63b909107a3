"""The tables of a scaling workshop: what each layout reached, and how it scales versus one GPU and versus one node.

Both are csv, Markdown and LaTeX: `scaling.*`, one row per point that succeeded, and `over_scenes.*`, one row per
strategy and layout with the geometric mean over scenes of each ratio.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .typeset import markdown, tabular

Row = dict[str, Any]

#: Column -> heading and format of what is shown; a line break in a heading is one in LaTeX.
_SHOWN: dict[str, tuple[str, str]] = {
    "scene": ("scene", "s"),
    "strategy": ("strategy", "s"),
    "layout": ("layout", "s"),
    "trainer": ("trainer", "s"),
    "images": ("images", ".0f"),
    "batch": ("batch", ".0f"),
    "loss": ("loss", ".4g"),
    "psnr": ("PSNR\n[dB]", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS", ".3f"),
    "num_gaussians": ("Gaussians", ".0f"),
    "train_s": ("training\n[s]", ".4g"),
    "total_s": ("total\n[s]", ".4g"),
    "differs": ("differs", "s"),
    "train_accuracy": ("training\naccuracy", ".4g"),
    "accuracy": ("validation\naccuracy", ".4g"),
    "images_per_s": ("images/s", ".4g"),
    "epoch_s": ("epoch\n[s]", ".4g"),
    "step_s": ("step\n[s]", ".3g"),
    "sent_mb_per_step": ("sent/step\n[MB]", ".3g"),
    "r_measured": ("R", ".3g"),
    "gpu0_memory_peak_gib": ("GPU 0 peak\n[GiB]", ".2f"),
    "gpu0_memory_average_gib": ("GPU 0 avg.\n[GiB]", ".2f"),
    "gpu0_memory_mode_gib": ("GPU 0 mode\n[GiB]", ".2f"),
    "memory_gib": ("peak\n[GiB]", ".2f"),
    "throughput_vs_1_gpu": ("throughput\nvs 1 GPU", ".2f"),
    "throughput_vs_1_node": ("throughput\nvs 1 node", ".2f"),
    "memory_vs_1_gpu": ("memory\nvs 1 GPU", ".2f"),
    "memory_vs_1_node": ("memory\nvs 1 node", ".2f"),
    "n_scenes": ("scenes", ".0f"),
    "speedup_geomean": ("speedup", ".2f"),
    "speedup_time_to_quality_geomean": ("speedup to\nequal quality", ".2f"),
    "throughput_vs_1_gpu_geomean": ("throughput\nvs 1 GPU", ".2f"),
    "throughput_vs_1_node_geomean": ("throughput\nvs 1 node", ".2f"),
    "memory_vs_1_gpu_geomean": ("memory\nvs 1 GPU", ".2f"),
    "memory_vs_1_node_geomean": ("memory\nvs 1 node", ".2f"),
    "psnr_over_baseline_mean_db": ("PSNR over\nbaseline [dB]", "+z.2f"),
}
_RATIOS = ("throughput_vs_1_gpu", "throughput_vs_1_node", "memory_vs_1_gpu", "memory_vs_1_node")
SCALING_COLUMNS = (
    *("scene", "strategy", "layout", "nodes", "ranks", "n_ok", "hardware", "loss", "psnr", "train_accuracy"),
    *("accuracy", "images_per_s", "epoch_s", "step_s", "sent_mb_per_step", "r_measured"),
    *("gpu0_memory_peak_gib", "gpu0_memory_average_gib", "gpu0_memory_mode_gib", "memory_gib", "memory_of"),
    *_RATIOS,
    "one_node_layout",
)
_AVERAGED = ("speedup", "speedup_time_to_quality", *_RATIOS)
OVER_SCENES_COLUMNS = (
    *("strategy", "layout", "nodes", "ranks", "hardware", "n_scenes", "scenes"),
    *(f"{name}_{what}" for name in _AVERAGED for what in ("geomean", "scenes")),
    *("psnr_over_baseline_mean_db", "psnr_over_baseline_scenes"),
)
CAPTION = (
    "Per layout, medians over repeats: quality, throughput, what a rank sends in a step (10^6 bytes, mean over ranks "
    "and steps), R (computing of one rank over communication of N, for the same images), memory in use on GPU 0 (peak, "
    "average and mode of its samples), and ratios versus one GPU (or CPU rank) and versus one node with as many "
    "workers per node. Only runs of the same scene with the same settings, code and hardware are compared."
)
OVER_SCENES_CAPTION = (
    "Over scenes in which the layout succeeded: geometric mean of each ratio, and arithmetic mean of the PSNR's "
    "differences, which are logarithms of ratios. In brackets: of how many scenes, where not of all; a scene in "
    "which a layout misses the quality has no speedup to equal quality."
)
#: What memory is compared by, best first: a ratio takes the first that both layouts know.
_MEMORY = {
    "gpu0_memory_peak_gib": "in use on GPU 0",
    "peak_gpu_gib": "allocated on the fullest GPU",
    "peak_rss_gib": "host, of the largest rank",
}
_ALIKE = ["scene", "baseline_strategy", "baseline_layout", "hardware"]


def scaling_rows(points: Sequence[Row]) -> list[Row]:
    """Return a row per point that succeeded, from rows of points.csv."""
    import pandas as pd

    names = (*SCALING_COLUMNS, *_ALIKE, *_MEMORY, "workers_per_node")
    frame = pd.DataFrame(points, columns=list(dict.fromkeys(names)))
    frame = frame[frame["n_ok"] > 0].reset_index(drop=True)
    if frame.empty:
        return []
    frame["hardware"] = frame["hardware"].fillna("")
    for name in _MEMORY:
        frame[name] = pd.to_numeric(frame[name])
    single = frame[frame["ranks"] == 1]
    # The same strategy's run on one GPU, else the baseline's: on one rank, strategies are one program.
    others = single.assign(other=single["strategy"] != single["baseline_strategy"]).sort_values(
        "other", kind="stable"
    )
    one_gpu = _reference(frame, single, [*_ALIKE, "strategy"])
    one_gpu = one_gpu.combine_first(_reference(frame, others, _ALIKE))
    one_node = _reference(frame, frame[frame["nodes"] == 1], [*_ALIKE, "strategy", "workers_per_node"])
    # A single worker per node is one GPU: what it reaches is in the other column.
    one_node = one_node.where(frame["workers_per_node"] > 1)
    for what, reference in (("1_gpu", one_gpu), ("1_node", one_node)):
        rate = pd.to_numeric(frame["images_per_s"]) / pd.to_numeric(reference["images_per_s"])
        epochs = pd.to_numeric(reference["epoch_s"]) / pd.to_numeric(frame["epoch_s"])
        frame[f"throughput_vs_{what}"] = rate.fillna(epochs)
        ratios = [frame[name] / pd.to_numeric(reference[name]) for name in _MEMORY]
        frame[f"memory_vs_{what}"] = pd.concat(ratios, axis=1).bfill(axis=1).iloc[:, 0]
    frame["memory_gib"] = frame[list(_MEMORY)].bfill(axis=1).iloc[:, 0]
    known = frame[list(_MEMORY)].notna()
    frame["memory_of"] = known.idxmax(axis=1).map(_MEMORY).where(known.any(axis=1))
    frame["one_node_layout"] = one_node["layout"]
    return _rows(frame, SCALING_COLUMNS)


def over_scenes_rows(points: Sequence[Row], scaling: Sequence[Row]) -> list[Row]:
    """Return a row per strategy, layout and hardware: each ratio's geometric mean over the scenes that know it.

    points: rows of points.csv. scaling: those of `scaling_rows`.
    """
    import numpy as np
    import pandas as pd

    if not scaling:
        return []
    key = ["scene", "strategy", "layout"]
    wanted = pd.DataFrame(points, columns=[*key, "baseline_strategy", "baseline_layout", "psnr"])
    wanted = wanted.assign(**{n: pd.DataFrame(points, columns=[n])[n] for n in _AVERAGED[:2]})
    base = wanted.rename(columns={"psnr": "baseline_psnr"}).drop(
        columns=["baseline_strategy", "baseline_layout"]
    )
    wanted = wanted.merge(
        base[[*key, "baseline_psnr"]],
        how="left",
        left_on=["scene", "baseline_strategy", "baseline_layout"],
        right_on=key,
        suffixes=("", "_of_baseline"),
    )
    wanted["db"] = pd.to_numeric(wanted["psnr"]) - pd.to_numeric(wanted["baseline_psnr"])
    frame = pd.DataFrame(scaling).merge(wanted[[*key, *_AVERAGED[:2], "db"]], on=key)
    rows = []
    for (strategy, layout, hardware), part in frame.groupby(["strategy", "layout", "hardware"], sort=False):
        row: Row = {"strategy": strategy, "layout": layout, "hardware": hardware}
        row |= {name: int(part[name].iloc[0]) for name in ("nodes", "ranks")}
        row |= {"n_scenes": len(part), "scenes": " ".join(sorted(part["scene"]))}
        for name in _AVERAGED:
            values = pd.to_numeric(part[name]).dropna()
            row[f"{name}_scenes"] = len(values)
            row[f"{name}_geomean"] = float(np.exp(np.log(values).mean())) if len(values) else None
        row["psnr_over_baseline_scenes"] = int(part["db"].notna().sum())
        row["psnr_over_baseline_mean_db"] = None if part["db"].isna().all() else float(part["db"].mean())
        rows.append(row)
    return sorted(rows, key=lambda r: (r["strategy"], r["ranks"], r["nodes"], r["hardware"]))


def _reference(frame: Any, candidates: Any, on: list[str]) -> Any:
    """Return, row by row of `frame`, the first of `candidates` that is equal in these columns."""
    first = candidates.drop_duplicates(on)
    return frame[on].merge(first, on=on, how="left").set_axis(frame.index)


def _rows(frame: Any, columns: Sequence[str]) -> list[Row]:
    """Return a frame's rows with None for what is not known."""
    wanted = frame[list(columns)].astype(object)
    rows: list[Row] = wanted.where(wanted.notna(), None).to_dict("records")
    return rows


def shown_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Choose the columns that a person is shown: those with a heading that some row fills."""
    shown = [c for c in columns if c in _SHOWN and any(r.get(c) is not None for r in rows)]
    if all(r.get("memory_of") == _MEMORY["gpu0_memory_peak_gib"] for r in rows):
        shown = [c for c in shown if c != "memory_gib"]
    return shown


def cells(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> tuple[list[str], list[list[str | None]]]:
    """Return the headings and the formatted cells of a table that a person is shown."""

    def cell(row: Mapping[str, Any], column: str) -> str | None:
        if row.get(column) is None:
            return None
        text = format(row[column], _SHOWN[column][1])
        of = row.get(f"{column.removesuffix('_geomean').removesuffix('_mean_db')}_scenes")
        return text if of in (None, row.get("n_scenes")) else f"{text} ({of})"

    return [_SHOWN[c][0] for c in columns], [[cell(r, c) for c in columns] for r in rows]


def numbers_from(columns: Sequence[str]) -> int:
    """Return the index of the first column of numbers."""
    return next((i for i, c in enumerate(columns) if _SHOWN[c][1] != "s"), len(columns))


def write_typeset(base: Path, rows: Sequence[Row], columns: Sequence[str], caption: str) -> None:
    """Write `base`.md and `base`.tex (to be included in a document with booktabs and longtable)."""
    columns = shown_columns(rows, columns)
    head, body = cells(rows, columns)
    plain = markdown([h.replace("\n", " ") for h in head], body, numbers_from=numbers_from(columns))
    write_text(
        base.with_name(f"{base.name}.md"),
        f"{caption}\n\n{plain}" if rows else f"{caption}\n\nNo run succeeded yet.\n",
    )
    table = tabular(head, body, numbers_from=numbers_from(columns), caption=caption) if rows else ""
    write_text(base.with_name(f"{base.name}.tex"), f"% {caption}\n{table}")
