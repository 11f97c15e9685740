"""The frontier of a method: its Pareto-optimal checkpoints in a plane of two losses, and the hull that the paper draws.

Points are float arrays [n, 2]; lower is better on both axes; order and repetitions do not matter.
"""

import moocore
import numpy as np
import numpy.typing as npt

from retain.results.analysis.loss_planes import Points


def pareto_set(points: npt.ArrayLike) -> Points:
    """The points that no other point matches or beats on both axes, [m, 2] by ascending x, each once (Section 3.1).

    Raises ValueError if a value is not finite.
    """
    checked = _checked(points)
    best: Points = checked[moocore.is_nondominated(checked)]
    return best[np.argsort(best[:, 0])]


def lower_left_hull(points: npt.ArrayLike) -> Points:
    """The vertices of the lower-left convex hull, [h, 2] by ascending x: the lines of the paper's figures.

    Every vertex is Pareto-optimal, and no point lies below the line. A point on the line between two vertices is not a
    vertex. Raises ValueError if a value is not finite.
    """
    hull: list[npt.NDArray[np.float64]] = []
    for point in pareto_set(points):
        while len(hull) > 1 and not _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array(hull, dtype=np.float64).reshape(-1, 2)


def height_at(hull: npt.ArrayLike, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The y of `hull` ([h, 2] by ascending x) at each x, in the shape of x; nan outside the hull's range."""
    vertices, at = _checked(hull), np.asarray(x, dtype=np.float64)
    if not len(vertices):
        return np.full(at.shape, np.nan)
    return np.asarray(np.interp(at, vertices[:, 0], vertices[:, 1], left=np.nan, right=np.nan), dtype=np.float64)


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The area that the points dominate up to `reference` ([2], a bad value on each axis), in squared nats.

    Points that are not better than the reference on both axes add nothing. Raises ValueError if a value is not finite.
    """
    corner = _checked(np.reshape(reference, (1, -1)))[0]
    return float(moocore.hypervolume(_checked(points), ref=corner))


def _turns_left(first: Points, second: Points, third: Points) -> bool:
    """Whether the second point lies below the line from the first to the third."""
    (ax, ay), (bx, by) = second - first, third - first
    return bool(ax * by - ay * bx > 0)


def _checked(points: npt.ArrayLike) -> Points:
    array = np.array(points, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"points must have the shape [n, 2], two losses each; got {list(array.shape)}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(
            f"point {row} is {array[row].tolist()}; leave out checkpoints whose loss is not a finite number"
        )
    return array
