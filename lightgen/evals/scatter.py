"""A cloud of points of a report: embeddings on the plane in which they are spread most."""

from collections.abc import Mapping
from html import escape

import numpy as np

from lightgen.evals.axes import NUM_COLORS, Points, fit_axis, legend

_VIEW = 1000


def principal_plane(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """(Places float64 [N, 2], share of the variance in [0, 1] that they show) of rows float [N, D], N from 1.

    The axes point to where the third moments are positive, so that the same rows give the same picture.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    places = rows @ vectors[:, ::-1][:, :2]
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    signs = np.where((places**3).sum(axis=0) < 0, -1.0, 1.0)
    total = float(values.clip(0).sum())
    return places * signs, float(values[-2:].clip(0).sum()) / total if total > 0 else 1.0


def scatter_plot(groups: Mapping[str, Points], label: str) -> str:
    """HTML of a cloud of points without ticks, as what the axes are has no name; beyond six, colours repeat.

    Args:
        groups: points (x, y) of each group, by name.
        label: what is shown, for those who cannot see it.
    """
    points = [point for group in groups.values() for point in group]
    if not points:
        return '<p class="empty">No points to plot.</p>'
    x_axis, y_axis = (fit_axis([point[i] for point in points], pad=0.03) for i in (0, 1))
    paths = []
    for index, group in enumerate(groups.values()):
        steps = "".join(
            f"M{_VIEW * x_axis.share(x):.0f} {_VIEW * (1 - y_axis.share(y)):.0f}h0" for x, y in group
        )
        style = "stroke-width:5.5;stroke-opacity:.6"
        paths.append(f'<path class="dots k{index % NUM_COLORS}" style="{style}" d="{steps}"/>')
    names = {f"{name} ({len(group):,})": () for name, group in groups.items()}
    return (
        f"{legend(names) if len(groups) > 1 else ''}"
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="--height:22rem">'
        f'<svg viewBox="0 0 {_VIEW} {_VIEW}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="grid-column:1/-1">{"".join(paths)}</svg></div>'
    )
