"""coxcompile: ``torch.compile(model, backend="coxmoe")`` for Mixture-of-Experts inference."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coxcompile.inspect.explanation import Explanation, explain
    from coxcompile.options import Options, OptionsError
    from coxcompile.planner.activation_map import ActivationMap
    from coxcompile.planner.stratification import stratify
    from coxcompile.runtime.choice_counts import ChoiceCounts
    from coxcompile.runtime.session import Session

__all__ = [
    "ActivationMap",
    "ChoiceCounts",
    "Explanation",
    "Options",
    "OptionsError",
    "Session",
    "explain",
    "stratify",
]

_MODULES = {
    "ActivationMap": "coxcompile.planner.activation_map",
    "ChoiceCounts": "coxcompile.runtime.choice_counts",
    "Explanation": "coxcompile.inspect.explanation",
    "Options": "coxcompile.options",
    "OptionsError": "coxcompile.options",
    "Session": "coxcompile.runtime.session",
    "explain": "coxcompile.inspect.explanation",
    "stratify": "coxcompile.planner.stratification",
}


# Imported when first used: PyTorch takes seconds, and most of the command line needs none of it.
def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
