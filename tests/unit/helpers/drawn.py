"""A study on disk and its figures, for tests that look at them."""

import csv
import functools
import importlib
from pathlib import Path

from dist3dgs import figures
from dist3dgs.analysis.tables import tabulate, write_table
from dist3dgs.figures import style
from dist3dgs.figures.study import Study
from tests.unit.helpers.records import write_records


class Drawn:
    """A study on disk, and its figures."""

    def __init__(self, folder: Path, records):
        self.folder, self.paths = folder, write_records(folder / "results", records)
        tabulate(self.paths, folder / "runs.csv", folder / "points.csv")

    def draw(self, name, where="figures"):
        base = self.folder / where / name
        figures.draw(name, self.folder / "runs.csv", self.folder / "points.csv", self.paths, base)
        return base

    def svg(self, name):
        return self.draw(name).with_name(f"{name}.svg").read_text(encoding="utf-8")

    def rows(self, name):
        """The figure's csv as it would be read again, without drawing the figure."""
        module = importlib.import_module(f"dist3dgs.figures.{name}")
        path = self.folder / f"{name}.csv"
        write_table(path, module.data(self.study), module.COLUMNS)
        with path.open(newline="", encoding="utf-8") as f:
            return list(csv.DictReader(f))

    @functools.cached_property
    def study(self):
        return Study.load(self.folder / "runs.csv", self.folder / "points.csv", self.paths)

    @functools.cache  # noqa: B019
    def picture(self, name):
        """The figure as matplotlib sees it, laid out."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        module = importlib.import_module(f"dist3dgs.figures.{name}")
        with style.styled(self.study.strategies):
            figure = module.plot(module.data(self.study))
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
        return figure

    def artists(self, name, gid):
        """Artists with this mark."""
        return [a for a in self.picture(name).findobj() if a.get_gid() == gid]

    def words(self, name):
        return [t.get_text() for t in texts(self.picture(name))]


def texts(figure):
    """All words that are drawn: ticks beyond the limits of their axis are not."""
    from matplotlib.text import Text

    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    beyond |= {tick.label1, tick.label2}
    return [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in beyond]
