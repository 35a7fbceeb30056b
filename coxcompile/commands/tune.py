"""``coxmoe tune``: time the GPU's expert kernels, so that the table of tiles has this GPU's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from coxcompile.gpu_analysis.expected_routing import ExpertLayer
    from coxcompile.tuning import Tuned

Weights = Literal["bfloat16", "float16", "float32", "float8", "int8", "int4"]


class TuningError(RuntimeError):
    """This cannot be tuned here; the message says why, and what to do."""


def tune(
    model: Annotated[
        str | None,
        typer.Option(help="whose experts: a name of `coxmoe models`, a local model, a spec file"),
    ] = None,
    experts: Annotated[int | None, typer.Option(min=1, help="in place of a model: E")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="inputs of an expert")] = None,
    intermediate: Annotated[int | None, typer.Option(min=1, help="an expert's width")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="experts of a token")] = None,
    weights: Annotated[Weights, typer.Option(help="what they are stored as")] = "bfloat16",
    tokens: Annotated[
        str, typer.Option(help="tokens an expert has on average: a row of the table for each")
    ] = "1,4,16,64,256,1024",
    candidates: Annotated[
        int, typer.Option(min=1, help="tiles tried for each projection and tile of tokens")
    ] = 12,
    rounds: Annotated[int, typer.Option(min=4, help="timings of each; the median counts")] = 15,
    output: Annotated[
        Path | None, typer.Option(help="the .json file to write, if not the one that is read later")
    ] = None,
) -> None:
    """Time the tiles of a layer's experts on this GPU, and keep the fastest for later runs.

    Takes some minutes, most of them compiling. Rows for the same GPU, shape, weights and tokens are
    replaced, others kept. COXMOE_TUNED names the file that is read, if not the one in the user's
    cache folder.
    """
    layer = layer_of(model, experts, hidden, intermediate, top_k)
    averages = averages_of(tokens)
    if output is not None and (output.suffix != ".json" or not output.parent.is_dir()):
        raise TuningError(f"--output is {output}; give a .json file in a folder that there is")
    import torch

    if not torch.cuda.is_available():
        raise TuningError(
            "tune times kernels on a GPU, but torch finds none here; without one, the tiles are "
            "those of the static table"
        )
    from rich.console import Console
    from rich.live import Live

    from coxcompile import tuning
    from coxcompile.measurement.device_timing import DeviceClock
    from coxcompile.runtime.kernels.gpu.configurations import load_rows, save_rows, tuned_table

    path = output or tuned_table()
    # Read first: a damaged file is to be found before minutes of timing.
    existing = load_rows(path) if path.exists() else ()
    device = torch.device("cuda", torch.cuda.current_device())
    console = Console()
    try:
        # Refreshed by calls alone: a thread would wake up in the middle of timings.
        with Live(console=console, auto_refresh=False, transient=True) as live:
            results = tuning.tune(
                layer,
                weights,
                averages,
                device=device,
                device_name=torch.cuda.get_device_name(device),
                seconds_of=DeviceClock(device).seconds,
                candidates=candidates,
                rounds=rounds,
                progress=lambda text: live.update(text, refresh=True),
            )
    except LookupError as error:
        raise TuningError(str(error)) from None
    except torch.OutOfMemoryError:
        raise TuningError(
            f"{layer.experts} experts of {layer.hidden} x {layer.intermediate} in {weights} do not "
            "fit this GPU's memory; give fewer --experts"
        ) from None
    save_rows(path, tuning.merged(existing, [result.row for result in results]))
    for line in lines_of(layer, results):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"written to {path}", soft_wrap=True)


def layer_of(
    model: str | None,
    experts: int | None,
    hidden: int | None,
    intermediate: int | None,
    top_k: int | None,
) -> "ExpertLayer":
    """The shape to tune for.

    Raises:
        TuningError: there is neither a model nor a whole shape, or there are both.
    """
    from coxcompile.commands.plan import model_of
    from coxcompile.gpu_analysis.expected_routing import ExpertLayer

    shape = {
        "--experts": experts,
        "--hidden": hidden,
        "--intermediate": intermediate,
        "--top-k": top_k,
    }
    if model is not None:
        if given := [name for name, value in shape.items() if value is not None]:
            raise TuningError(f"--model has a shape of its own; leave out {' and '.join(given)}")
        return ExpertLayer.of_model(model_of(model))
    if experts is None or hidden is None or intermediate is None or top_k is None:
        missing = [name for name, value in shape.items() if value is None]
        raise TuningError(f"give --model, or a whole shape: {' and '.join(missing)} too")
    if top_k > experts:
        raise TuningError(f"--top-k is {top_k}, but there are {experts} experts")
    return ExpertLayer(
        name="the experts", experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate
    )


def averages_of(text: str) -> list[int]:
    """The numbers of ``--tokens``, ascending.

    Raises:
        TuningError: it is not a list of numbers of 1 or more.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise TuningError(f"--tokens is {text!r}; give numbers of 1 or more, as 1,16,256")
    return sorted({int(part) for part in parts})


def lines_of(layer: "ExpertLayer", results: "list[Tuned]") -> list[str]:
    """What was found, for the terminal."""
    lines = [f"{layer.name}: {layer.experts} experts of {layer.hidden} x {layer.intermediate}"]
    for result in results:
        row, dropped = result.row, list(result.dropped.values())
        lines.append(
            f"{row.tokens_per_expert} tokens an expert: {result.seconds * 1e6:.1f} µs for both "
            f"projections, {result.timed} tiles timed, {len(dropped)} dropped"
            + (f" (one of them: {dropped[0]})" if dropped else "")
        )
        lines.append(f"  {row.configuration}")
    return lines
