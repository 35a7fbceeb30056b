"""What ``torch.compile(model, backend="coxmoe", options={...})`` accepts as options."""

import difflib
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from coxcompile import option_checks as checks
from coxcompile.hardware import HardwareSpec
from coxcompile.option_checks import Check
from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.plan import Plan
from coxcompile.runtime.choice_counts import ChoiceCounts
from coxcompile.runtime.session import Session

Training = Literal["error", "eager"]
AcceleratorName = Literal["auto", "cuda", "emulated", "none"]
CpuKernels = Literal["auto", "ipex"]
GpuKernels = Literal["auto", "triton", "torch"]


class OptionsError(ValueError):
    """Options that the backend does not accept.

    ``problems`` holds one sentence per unknown option or wrong value: all of them, not only the
    first.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems with the options of coxmoe:{lines}"
        super().__init__(message)


def declare(*, help: str, check: Check, environment: str | None = None) -> dict[str, Any]:
    """Return the metadata of an option's field: one line of help, its check.

    ``environment`` names the environment variable that gives the value when the user does not;
    the check then has to accept text.
    """
    return {"help": help, "check": check, "environment": environment}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Validated options of one ``torch.compile`` call.

    To add an option, add a field: its name is what users write, and its declaration is all that
    validation and errors need. docs/options.md lists the same fields; a test compares the two.
    """

    training: Training = field(
        default="error",
        metadata=declare(
            help="What happens to a graph that needs gradients, which this backend does not"
            ' compile: "error" raises, "eager" runs it uncompiled and warns once.',
            check=checks.one_of(*get_args(Training)),
        ),
    )
    dump: Path | None = field(
        default=None,
        metadata=declare(
            help="Directory to which the graph after each pass is written, made if missing;"
            " None writes nothing.",
            check=checks.directory(),
            environment="COXMOE_DUMP",
        ),
    )
    pack_linears: bool = field(
        default=False,
        metadata=declare(
            help="Let Inductor keep packed copies of the weights of linear layers outside the"
            " experts: a few percent faster with many tokens, for more memory.",
            check=checks.flag(),
        ),
    )
    packed_weight_budget: float = field(
        default=0.05,
        metadata=declare(
            help="Largest share of the model's bytes that packed copies may take.",
            check=checks.share(),
        ),
    )
    count_choices: ChoiceCounts | None = field(
        default=None,
        metadata=declare(
            help="Where the compiled graph counts, on every call, how often each layer's experts"
            " are chosen; None counts nothing and costs nothing.",
            check=checks.counters(),
        ),
    )
    cpu_kernels: CpuKernels = field(
        default="auto",
        metadata=declare(
            help="What computes the experts without an accelerator; auto: coxcompile's C++ kernels,"
            " or PyTorch calls where they were not built. ipex: Intel Extension for PyTorch 2.8,"
            " which keeps a second, packed copy of their weights.",
            check=checks.one_of(*get_args(CpuKernels)),
        ),
    )
    spread_experts: bool = field(
        default=False,
        metadata=declare(
            help="On a machine of several NUMA nodes, move a part of every expert's weights to each"
            " node, the part that its threads read; without an accelerator.",
            check=checks.flag(),
        ),
    )

    accelerator: AcceleratorName = field(
        default="auto",
        metadata=declare(
            help="Where the plan's GPU side runs; auto: on cuda if there is one, else everything on"
            " the CPU. emulated: a test device (docs/emulated-accelerator.md).",
            check=checks.one_of(*get_args(AcceleratorName)),
        ),
    )
    vram: int | None = field(
        default=None,
        metadata=declare(
            help="Bytes of the accelerator's memory to use; None: all that the hardware has.",
            check=checks.size(),
        ),
    )
    plan: Plan | str = field(
        default="coxmoe",
        metadata=declare(
            help="What runs where: a policy, which plans for each graph, or a plan made before.",
            check=checks.plan(),
        ),
    )
    activation_map: ActivationMap | None = field(
        default=None,
        metadata=declare(
            help="How often each expert is chosen (coxmoe stratify): the hottest become resident;"
            " None: all alike.",
            check=checks.activation_map(),
        ),
    )
    hardware: HardwareSpec | None = field(
        default=None,
        metadata=declare(
            help="The machine that policies plan for; None: this one as calibrated, or, emulated,"
            " the paper's system I.",
            check=checks.hardware(),
        ),
    )
    throttle: bool = field(
        default=False,
        metadata=declare(
            help="Let the emulated accelerator, and the CPU beside it, take as long as hardware"
            " would.",
            check=checks.flag(),
        ),
    )
    gpu_kernels: GpuKernels = field(
        default="auto",
        metadata=declare(
            help="What computes the accelerator's experts: Triton kernels or PyTorch's products;"
            " auto: triton on cuda, torch on the emulated accelerator.",
            check=checks.one_of(*get_args(GpuKernels)),
        ),
    )
    session: Session | None = field(
        default=None,
        metadata=declare(
            help="What graphs that share an accelerator have in common: records their calls, and"
            " changes the resident experts; None: one for the process.",
            check=checks.session(),
        ),
    )

    @classmethod
    def from_user(cls, options: Mapping[str, object] | None) -> "Options":
        """Validate the ``options`` argument of ``torch.compile``; None means all defaults.

        Raises OptionsError, which lists every unknown option and every wrong value at once.
        """
        if options is None:
            options = {}
        if not isinstance(options, Mapping):
            raise OptionsError(
                [f"options: got {_describe(options)}; allowed: a dict from option names to values"]
            )
        names = [declared.name for declared in fields(cls)]
        problems = [_unknown(name, names) for name in options if name not in names]
        accepted: dict[str, Any] = {}
        for declared in fields(cls):
            check, environment = declared.metadata["check"], declared.metadata["environment"]
            value: object
            if declared.name in options:
                origin, value = f'option "{declared.name}"', options[declared.name]
            elif environment and (text := os.environ.get(environment)):
                origin, value = f"environment variable {environment}", text
            else:
                continue
            try:
                accepted[declared.name] = check.accept(value)
            except ValueError as reason:
                problems.append(_wrong(origin, value, check, str(reason)))
        if problems:
            raise OptionsError(problems)
        return cls(**accepted)


def _unknown(name: object, names: Sequence[str]) -> str:
    shown = f'"{name}"' if isinstance(name, str) else _describe(name)
    return f"unknown option {shown}; allowed: {', '.join(names)}{_suggestion(name, names)}"


def _wrong(origin: str, value: object, check: Check, reason: str) -> str:
    because = f", but {reason}" if reason else ""
    suggestion = _suggestion(value, check.choices)
    return f"{origin}: got {_describe(value)}{because}; allowed: {check.allowed}{suggestion}"


def _suggestion(given: object, candidates: Sequence[str]) -> str:
    if not isinstance(given, str):
        return ""
    nearest = difflib.get_close_matches(given.lower(), candidates, n=1)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""


def _describe(value: object) -> str:
    # A tensor or a long list passed by mistake must not bury the message; a path must stay whole.
    shortened = reprlib.Repr()
    shortened.maxstring = 300
    return f"{shortened.repr(value)} ({type(value).__name__})"
