"""What the passes share: options, the graph's inputs, the blocks found, the graph after each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node

from coxcompile.hardware import HardwareSpec
from coxcompile.options import Options
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Stage, StagePlan
from coxcompile.planner.workload import Workload
from coxcompile.runtime.expert_layer import ExpertLayer


@dataclass(frozen=True)
class MoEBlock:
    """One routed FFN found in a graph: what it is, and the nodes that compute it.

    Dimensions: ``experts`` E, ``top_k`` k, ``hidden`` H, ``intermediate`` I.
    """

    path: str
    form: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    dtype: torch.dtype
    activation: str
    gate_layout: str
    transposed: bool
    alpha: float
    limit: float | None
    hidden_states: Node = field(repr=False)
    expert_ids: Node = field(repr=False)
    routing_weights: Node = field(repr=False)
    gate_up: Node = field(repr=False)
    down: Node = field(repr=False)
    gate_up_bias: Node | None = field(repr=False)
    down_bias: Node | None = field(repr=False)
    output: Node = field(repr=False)

    @property
    def weight_layout(self) -> str:
        """How the weights lie in memory, as a shape."""
        return "[E, in, out]" if self.transposed else "[E, out, in]"

    def __str__(self) -> str:
        biases = ", biases" if self.gate_up_bias is not None else ""
        return (
            f"{self.path}: {self.form}, E={self.experts}, k={self.top_k}, hidden={self.hidden}, "
            f"intermediate={self.intermediate}, {str(self.dtype).removeprefix('torch.')}, "
            f"{self.activation}, {self.gate_layout} gate/up, weights {self.weight_layout}{biases}"
        )


@dataclass(frozen=True)
class SkippedBlock:
    """Something that looks like an MoE block and was left alone, with the reason."""

    path: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.node}): {self.reason}"


@dataclass(frozen=True)
class Placement:
    """What co-execution is planned with: chosen by the pass ``plan``, read by those after it.

    Attributes:
        model: dimensions of the model, as its graph shows them.
        stage: "decode" if each sequence has one token and a cache, else "prefill".
        plan: the stage's plan.
        workload: what it was made for: the graph's batch and lengths.
        reasons: for each decision a sentence.
    """

    model: ModelSpec
    stage: Stage
    plan: StagePlan
    workload: Workload | None = None
    reasons: tuple[str, ...] = ()


@dataclass
class PassContext:
    """Carried from pass to pass.

    Attributes:
        example_inputs: what Dynamo gave the backend, in placeholder order; the model's own
            Parameters are among them.
        input_names: for each of them the dotted name it has in the model ("" if it has none).
        graphs: name of each pass run so far, with the readable graph it left.
        seconds: how long each pass took.
        dump_directory: where this graph's dumps go, if anywhere.
        placement: the plan of co-execution; None without an accelerator.
        vram: bytes of the accelerator's memory that the graph may use.
        set_aside_bytes: of them, what policies leave because an earlier plan lacked it.
        throttle: the machine whose speed an emulated accelerator is slowed to, if any.
        gpu_kernels: what computes the accelerator's experts.
        expert_layers: the layers whose experts are divided, in order.
        notes: what a pass left undone, and why; a sentence each.
    """

    options: Options
    example_inputs: Sequence[Any]
    input_names: Sequence[str]
    blocks: list[MoEBlock] = field(default_factory=list)
    skipped: list[SkippedBlock] = field(default_factory=list)
    graphs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    dump_directory: Path | None = None
    placement: Placement | None = None
    vram: int = 0
    set_aside_bytes: int = 0
    throttle: HardwareSpec | None = None
    gpu_kernels: Literal["triton", "torch"] = "torch"
    expert_layers: list[ExpertLayer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Pass = Callable[[GraphModule, PassContext], GraphModule]


def parameters_of(graph_module: GraphModule, context: PassContext) -> Mapping[Node, torch.Tensor]:
    """The placeholders that are the model's Parameters, with the Parameter each stands for."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    return {
        node: value
        for node, value in zip(placeholders, context.example_inputs, strict=True)
        if isinstance(value, torch.nn.Parameter)
    }


def parameter_path(name: str) -> str:
    """The module a parameter belongs to: "model.layers.0.mlp.experts.down_proj" without its end."""
    return name.rpartition(".")[0] or name
