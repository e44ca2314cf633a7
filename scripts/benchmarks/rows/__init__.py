"""The rows, in the order of the table."""

from scripts.benchmarks.row import Row
from scripts.benchmarks.rows import burst, claim, control_plane, density, fan_out, layer, load, pause, pull, start

ALL: tuple[Row, ...] = (
    start.ROW,
    claim.ROW,
    burst.ROW,
    density.ROW,
    load.ROW,
    pull.ROW,
    pause.ROW,
    layer.ROW,
    control_plane.ROW,
    fan_out.ROW,
)
