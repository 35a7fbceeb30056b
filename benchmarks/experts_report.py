"""What the timings of experts come to: a table a layer, and speeds over the better peer."""

import statistics
from collections.abc import Mapping, Sequence

from experts_implementations import COXMOE
from experts_layers import Layer
from experts_peers import SGLANG, ZENTORCH
from experts_timing import ROOFLINE, Row
from rich.table import Table

JUDGED_BY = (ZENTORCH, SGLANG)
"""The peers whose better one is what coxmoe is to be faster than."""

Case = tuple[str, int, str]
"""A layer's name, a number of tokens and a routing."""


def rows_by_case(rows: Sequence[Row]) -> dict[Case, dict[str, Row]]:
    """Per case, its rows by the implementation's name."""
    cases: dict[Case, dict[str, Row]] = {}
    for row in rows:
        case = (row.layer, row.tokens, row.routing)
        cases.setdefault(case, {})[row.implementation] = row
    return cases


def judges_in(rows: Sequence[Row]) -> list[str]:
    """Those of JUDGED_BY that were timed."""
    timed = {row.implementation for row in rows}
    return [name for name in JUDGED_BY if name in timed]


def speed_over(by_name: Mapping[str, Row], name: str) -> float:
    """coxmoe's share of the roofline / another's, of one case; more than 1: coxmoe is faster.

    Not their times: turns a second apart find the memory up to twice as fast, and each share has
    the roofline that was probed right before.
    """
    return by_name[COXMOE].over_roofline / by_name[name].over_roofline


def speed_over_better_peer(by_name: Mapping[str, Row], judges: Sequence[str]) -> float:
    """:func:`speed_over` the faster judge."""
    return min(speed_over(by_name, name) for name in judges)


def table_of(layer: Layer, rows: Sequence[Row]) -> Table:
    """One line a case: the roofline, then per implementation its time and two ratios.

    Where peers were timed, a last column has the speed over the better of JUDGED_BY.
    """
    title = (
        f"{layer.name}: {layer.experts} experts, top {layer.top_k}, "
        f"{layer.hidden} x {layer.intermediate}, bfloat16"
    )
    caption = (
        "milliseconds · share of the roofline · in brackets: coxmoe's share / its (more than 1: "
        "coxmoe is faster)"
    )
    judges = judges_in(rows)
    table = Table(title=title, caption=caption)
    table.add_column("tokens", justify="right")
    table.add_column("routing")
    names = list(dict.fromkeys(row.implementation for row in rows))
    for name in names:
        table.add_column(f"{name}, ms" if name == ROOFLINE else name, justify="right")
    if judges:
        table.add_column(f"coxmoe over {_better_of(judges)}", justify="right")
    for (_, tokens, routing), by_name in rows_by_case(rows).items():
        cells = []
        for name in names:
            cell = f"{by_name[name].milliseconds:.2f}"
            if name != ROOFLINE:
                cell += f" · {by_name[name].over_roofline:.0%}"
            if name not in (ROOFLINE, COXMOE):
                cell += f" ({speed_over(by_name, name):.2f}x)"
            cells.append(cell)
        if judges:
            cells.append(f"{speed_over_better_peer(by_name, judges):.2f}x")
        table.add_row(str(tokens), routing, *cells)
    return table


def errors_of(rows: Sequence[Row]) -> str:
    """The largest error of each implementation, as one line."""
    largest: dict[str, float] = {}
    for row in rows:
        if row.error is not None:
            largest[row.implementation] = max(largest.get(row.implementation, 0.0), row.error)
    listed = ", ".join(f"{name} {error:.1e}" for name, error in largest.items())
    return f"largest relative error against float32: {listed}"


def summary_of(rows: Sequence[Row]) -> str:
    """The geometric mean of the speeds over the better peer, and the least; rows of all layers.

    ValueError where none of JUDGED_BY was timed.
    """
    judges = judges_in(rows)
    if not judges:
        raise ValueError(f"rows has none of {', '.join(JUDGED_BY)}; time one of them")
    speeds = {
        case: speed_over_better_peer(by_name, judges)
        for case, by_name in rows_by_case(rows).items()
    }
    mean = statistics.geometric_mean(speeds.values())
    least = min(speeds, key=lambda case: speeds[case])
    layer, tokens, routing = least
    return (
        f"coxmoe over {_better_of(judges)}: geometric mean {mean:.2f}x over {len(speeds)} rows, "
        f"at least {speeds[least]:.2f}x ({layer}, {tokens} tokens, {routing})"
    )


def _better_of(judges: Sequence[str]) -> str:
    return judges[0] if len(judges) == 1 else f"the better of {' and '.join(judges)}"
