"""Hints of symbolic sizes, under the names that PyTorch 2.13 has for them."""

try:
    from torch.fx.experimental.symbolic_shapes import has_guarding_hint, optimization_hint
except ImportError:  # PyTorch 2.8 to 2.12
    from torch.fx.experimental.symbolic_shapes import (  # type: ignore[attr-defined,no-redef]
        has_hint as has_guarding_hint,
    )

    try:
        from torch.fx.experimental.symbolic_shapes import (  # type: ignore[attr-defined,no-redef]
            size_hint as optimization_hint,
        )
    except ImportError:  # PyTorch 2.8
        from torch.fx.experimental.symbolic_shapes import (  # type: ignore[attr-defined,no-redef]
            hint_int as optimization_hint,
        )

__all__ = ["has_guarding_hint", "optimization_hint"]
