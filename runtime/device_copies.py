"""Copies on the accelerator of what lies on the host: parameters, and KV caches kept there."""

import torch
from torch import Tensor

from coxcompile.runtime.accelerator import Accelerator
from coxcompile.runtime.versions import Version, version_of


class DeviceCopies:
    """One copy for each host tensor asked for, made when it is new or was changed in place.

    A cache is changed on both sides by the graph itself; ``mark_current`` says that they are equal.
    Tensors made in inference mode have no version, so their copies are made in every call.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._copies: dict[str, tuple[Version | None, Tensor]] = {}

    def get(self, name: str, host: Tensor, *, constant: bool) -> Tensor:
        """The copy of ``host``, which is known by ``name`` in its graph.

        Args:
            constant: a weight; without a version it is taken to be unchanged.
        """
        known = self._copies.get(name)
        version = version_of(host, constant=constant)
        if known is not None and version is not None and known[0] == version:
            return known[1]
        if known is not None and known[1].shape == host.shape and known[1].dtype == host.dtype:
            copy = known[1]
        else:
            self._copies.pop(name, None)
            copy = torch.empty_like(host, device=self._accelerator.device)
        copy.copy_(host)
        self._copies[name] = (version, copy)
        return copy

    def mark_current(self, name: str, host: Tensor) -> None:
        """Both sides were changed alike."""
        self._copies[name] = (version_of(host, constant=False), self._copies[name][1])

    def release(self) -> None:
        """Give the memory back; the next ``get`` copies again."""
        self._copies.clear()
