"""The command line of experts.py."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from experts_layers import EVEN, LAYERS, ROUTINGS, Layer


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; wrong values end the program before anything is measured."""
    parser = argparse.ArgumentParser(description="Time the routed experts of MoE layers.")
    parser.add_argument(
        "--layer",
        type=_layer,
        action="append",
        metavar="NAME",
        help=f"{', '.join(LAYERS)}; repeat it for more than one (default: all)",
    )
    defaults = "; ".join(
        f"{layer.name} {','.join(map(str, layer.tokens))}" for layer in LAYERS.values()
    )
    parser.add_argument(
        "--tokens",
        type=_token_counts,
        metavar="LIST",
        help=f"numbers of tokens, with commas (default: {defaults})",
    )
    parser.add_argument(
        "--routing",
        choices=(*ROUTINGS, EVEN),
        help=f"only this one (default: {' and '.join(ROUTINGS)}); {EVEN}: the same number of "
        "tokens for every expert",
    )
    parser.add_argument(
        "--repeats", type=_positive, default=5, metavar="N", help="timings per row (default: 5)"
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="add the kernels of zentorch, SGLang and vLLM that are installed (make bench-peers "
        "installs them), and leave out the slow baselines",
    )
    parser.add_argument(
        "--slow-baselines",
        action="store_true",
        help="with --peers: keep the loops over the experts, which run anyway without it",
    )
    parser.add_argument(
        "--json", type=_json_path, metavar="FILE", help="also write the rows to this file"
    )
    options = parser.parse_args(arguments)
    if options.slow_baselines and not options.peers:
        parser.error("--slow-baselines goes with --peers; without --peers they run anyway")
    return options


def _layer(name: str) -> Layer:
    if name in LAYERS:
        return LAYERS[name]
    close = difflib.get_close_matches(name.lower(), [known.lower() for known in LAYERS], n=1)
    nearest = [known for known in LAYERS if known.lower() in close]
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise argparse.ArgumentTypeError(f"no layer {name!r}; use one of {', '.join(LAYERS)}{hint}")


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more; use e.g. 8")
    return int(text)


def _token_counts(text: str) -> list[int]:
    try:
        return [_positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers of 1 or more; use e.g. 1,8,64"
        ) from None


def _json_path(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r}: there is no folder {str(path.parent)!r}; make it first"
        )
    return path
