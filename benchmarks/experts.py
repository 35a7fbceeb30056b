"""Times the routed experts of one MoE layer: coxmoe's op beside others and beside the roofline.

Every implementation gets the same weights, hidden states and routing; a new draw of both each
repeat. The implementations take turns, each right after a probe of the roofline, and what is
printed are medians: milliseconds, and the roofline's time as a fraction of the measured time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import experts_peers
import torch
from experts_arguments import parse_arguments
from experts_implementations import (
    COXMOE,
    Implementation,
    default_baseline,
    own_implementation,
    slow_baselines,
)
from experts_layers import LAYERS, ROUTINGS, Layer, Weights, random_weights
from experts_peers import Peer, load_peers, peers_on
from experts_report import errors_of, judges_in, summary_of, table_of
from experts_timing import Row, WrongResultError, time_case
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coxcompile.measurement.scheduling import scheduled_first


def implementations(
    layer: Layer, weights: Weights, peers: Mapping[str, Implementation], with_slow: bool
) -> dict[str, Implementation]:
    """What is compared, all of it on the same weights, coxmoe first."""
    return {
        COXMOE: own_implementation(weights),
        **peers,
        **default_baseline(layer, weights),
        **(slow_baselines(layer, weights) if with_slow else {}),
    }


@torch.inference_mode()
def measure(
    layers: Sequence[Layer],
    tokens: Sequence[int] | None,
    routings: Sequence[str],
    repeats: int,
    console: Console,
    peers: Sequence[Peer] = (),
    with_slow: bool = True,
) -> list[Row]:
    """Times every case, printing a table for each layer as it is done.

    `tokens` None: the numbers of tokens that each layer has for itself.
    """
    torch.manual_seed(0)
    rows: list[Row] = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # Its thread would otherwise wake up in the middle of timings.
        auto_refresh=False,
    )
    counts = {layer: tokens or layer.tokens for layer in layers}
    with scheduled_first(), progress:
        cases = sum(map(len, counts.values())) * len(routings)
        task = progress.add_task("", total=cases * repeats)
        for layer in layers:
            progress.update(task, description=f"{layer.name}: making weights", refresh=True)
            weights = random_weights(layer)
            layer_rows: list[Row] = []
            with peers_on(peers, weights) as packed:
                compared = implementations(layer, weights, packed, with_slow)
                for token_count in counts[layer]:
                    for routing in routings:
                        description = f"{layer.name}: {token_count} tokens, {routing}"
                        progress.update(task, description=description, refresh=True)
                        layer_rows += time_case(
                            layer,
                            token_count,
                            routing,
                            weights,
                            compared,
                            repeats,
                            lambda: progress.update(task, advance=1, refresh=True),
                        )
            # Before the next layer's weights, which would otherwise be made beside all of these.
            del weights, packed, compared
            console.print(table_of(layer, layer_rows))
            console.print(f"{errors_of(layer_rows)}\n")
            rows += layer_rows
    return rows


def peers_for(console: Console) -> list[Peer]:
    """The peers that are installed, named; a line for each that is not; none at all is an error."""
    peers, messages = load_peers(experts_peers.PEERS)
    for message in messages:
        console.print(message, soft_wrap=True)
    if not peers:
        raise SystemExit("--peers: none is installed, so there is nothing to add")
    listed = ", ".join(f"{peer.name} (of {peer.version})" for peer in peers)
    console.print(f"peers: {listed}; {torch.get_num_threads()} threads\n", soft_wrap=True)
    return peers


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark as the command line says."""
    options = parse_arguments(arguments)
    console = Console()
    try:
        rows = measure(
            options.layer or list(LAYERS.values()),
            options.tokens,
            [options.routing] if options.routing else ROUTINGS,
            options.repeats,
            console,
            peers_for(console) if options.peers else (),
            with_slow=options.slow_baselines or not options.peers,
        )
    except WrongResultError as error:
        raise SystemExit(str(error)) from error
    if judges_in(rows):
        console.print(summary_of(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        console.print(f"rows written to {options.json}")


if __name__ == "__main__":
    main()
