"""coxcompile: ``torch.compile(model, backend="coxmoe")`` for Mixture-of-Experts inference."""

from coxcompile.inspect.explanation import Explanation, explain
from coxcompile.options import Options, OptionsError

__all__ = ["Explanation", "Options", "OptionsError", "explain"]
