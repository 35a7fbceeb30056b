"""``coxmoe::count_choices_`` as plain PyTorch calls, on any device."""

import torch


def count_choices_(counts: torch.Tensor, expert_ids: torch.Tensor) -> None:
    """Shapes, dtypes and meaning as in :mod:`coxcompile.ops`.

    Raises:
        IndexError: an expert id is out of range.
    """
    experts = len(counts)
    flat_ids = expert_ids.reshape(-1)
    if len(outside := flat_ids[(flat_ids < 0) | (flat_ids >= experts)]):
        raise IndexError(
            f"count_choices_: expert_ids holds {int(outside[0])}, but there are {experts} "
            f"experts; ids must lie in [0, {experts})"
        )
    counts += torch.bincount(flat_ids, minlength=experts)
