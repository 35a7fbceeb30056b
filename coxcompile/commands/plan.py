"""``coxmoe plan``: what each policy would do with a model on a machine, and what it would take."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coxcompile.commands.options import AsJson, print_json
from coxcompile.naming import UnknownNameError

if TYPE_CHECKING:
    from coxcompile.hardware import HardwareSpec
    from coxcompile.planner.cost_model import Prediction, StagePrediction
    from coxcompile.planner.model_spec import ModelSpec
    from coxcompile.planner.plan import Plan, StagePlan


def plan(
    model: Annotated[
        str,
        typer.Option(help="a name of `coxmoe models`, a local model, or a spec file"),
    ],
    system: Annotated[
        str, typer.Option(help="a name of `coxmoe systems`, `this` machine, or a spec file")
    ],
    batch: Annotated[int, typer.Option(min=1, help="sequences")],
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="tokens of each prompt")],
    output_tokens: Annotated[int, typer.Option("--output", min=1, help="new tokens of each")],
    policy: Annotated[str, typer.Option(help="a policy, or `all`")] = "all",
    activation_map: Annotated[
        Path | None, typer.Option(help="a map of `coxmoe stratify`; without one, uniform routing")
    ] = None,
    json: AsJson = False,
    trace: Annotated[
        Path | None, typer.Option(help="write the best plan's simulated timeline (Chrome trace)")
    ] = None,
) -> None:
    """Plan a workload under one policy or all, and predict its speed; nothing is measured."""
    from coxcompile.planner.activation_map import ActivationMap
    from coxcompile.planner.cost_model import predict
    from coxcompile.planner.policies import POLICIES, make_plan
    from coxcompile.planner.workload import uniform_workload
    from coxcompile.systems import system_named

    spec, hardware = model_of(model), system_named(system)
    workload = uniform_workload(batch, input_tokens, output_tokens)
    probabilities = None
    if activation_map is not None:
        probabilities = ActivationMap.load(activation_map).probabilities()
    plans: list[tuple[Plan, Prediction]] = []
    refused: dict[str, str] = {}
    for name in POLICIES if policy == "all" else (policy,):
        try:
            made = make_plan(name, spec, hardware, workload, probabilities)
        except UnknownNameError:
            raise
        except ValueError as error:  # it does not fit, or needs a GPU
            refused[name] = str(error)
        else:
            plans.append((made, predict(made, spec, hardware, workload, probabilities)))
    plans.sort(key=lambda entry: -entry[1].tokens_per_second)
    if json:
        objects = [_object(made, prediction) for made, prediction in plans]
        objects += [{"policy": name, "error": reason} for name, reason in refused.items()]
        print_json(objects)
    else:
        _print(spec, hardware, plans, refused)
    if trace is not None and plans:
        from coxcompile.planner.simulator import simulate

        simulate(plans[0][0], spec, hardware, workload, probabilities).save_trace(trace)
        typer.echo(f"timeline of {plans[0][0].policy}, simulated: {trace}", err=True)
    if not plans:
        raise typer.Exit(1)


def model_of(text: str) -> "ModelSpec":
    """The spec that ``--model`` names: a file, a local Hugging Face directory, or a known name."""
    from coxcompile.planner.model_spec import ModelSpec, model_from_config
    from coxcompile.planner.models import model_named
    from coxcompile.planner.records import load

    path = Path(text)
    if path.is_file():
        return load(ModelSpec, path)
    if (path / "config.json").is_file():
        from transformers import AutoConfig

        return model_from_config(AutoConfig.from_pretrained(path, local_files_only=True), path.name)
    return model_named(text)


def _object(made: "Plan", prediction: "Prediction") -> dict[str, Any]:
    def stage(planned: "StagePlan", predicted: "StagePrediction") -> dict[str, Any]:
        return {
            "seconds": predicted.seconds,
            "step_seconds": predicted.step_seconds,
            "hit_ratio": predicted.hit_ratio,
            "busy_seconds": predicted.busy,
            **asdict(planned),
        }

    return {
        "policy": made.policy,
        "tokens_per_second": prediction.tokens_per_second,
        "prefill": stage(made.prefill, prediction.prefill),
        "decode": stage(made.decode, prediction.decode),
        "memory": {
            name: {kind: getattr(predicted.memory, kind) for kind in ("vram", "host", "disk")}
            for name, predicted in (
                ("prefill", prediction.prefill),
                ("decode", prediction.decode),
            )
        },
        "reasons": made.reasons,
    }


def _print(
    spec: "ModelSpec",
    hardware: "HardwareSpec",
    plans: "list[tuple[Plan, Prediction]]",
    refused: dict[str, str],
) -> None:
    from rich.console import Console
    from rich.table import Table

    # Into a pipe, rich would cut the table to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(title=f"{spec.name} on {hardware.name}: predicted, not measured")
    for heading in ("policy", "tokens/s", "stage", "seconds", "OP0-2", "μ", "experts", "hits"):
        left = heading in ("policy", "stage", "experts")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    table.add_column("VRAM", justify="right", no_wrap=True)
    for made, prediction in plans:
        for name, planned, predicted in (
            ("prefill", made.prefill, prediction.prefill),
            ("decode", made.decode, prediction.decode),
        ):
            first = name == "prefill"
            table.add_row(
                made.policy if first else "",
                f"{prediction.tokens_per_second:.4g}" if first else "",
                name,
                f"{predicted.seconds:.4g}",
                "".join(device[0] for device in planned.devices),
                str(planned.micro_batch),
                _mean_split(planned),
                f"{predicted.hit_ratio:.0%}",
                f"{predicted.memory.vram_bytes / 1e9:.1f} GB",
                end_section=not first,
            )
    if plans:
        console.print(table)
        console.print(
            "OP0-2: where QKV projection, attention and output projection run, g = GPU, c = CPU; "
            "experts a layer: resident + migrating + CPU; hits: choices that find theirs in VRAM",
            style="dim",
        )
        console.print(f"\nwhy, for {plans[0][0].policy}:")
        for reason in plans[0][0].reasons:
            console.print(f"  {reason}")
    for reason in refused.values():
        console.print(reason, style="red")


def _mean_split(stage: "StagePlan") -> str:
    layers = max(len(stage.experts), 1)
    counts = (
        sum(getattr(split, kind) for split in stage.experts) / layers
        for kind in ("resident", "migrating", "cpu")
    )
    return "+".join(f"{count:.3g}" for count in counts)
