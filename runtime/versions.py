"""Telling whether a host tensor is the one that was copied, and unchanged since."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Version = tuple[object, ...]


def version_of(host: Tensor, *, constant: bool) -> Version | None:
    """Equal for the same memory with the same contents; None where nobody can tell.

    It holds a weak reference to the memory, so that no other tensor that is allocated at the same
    address later is taken for this one. Changes through ``Tensor.data`` are not seen.

    Args:
        constant: of a tensor made in inference mode, which counts no changes, say that it has none.
    """
    if host.is_inference() and not constant:
        return None
    changes = 0 if host.is_inference() else host._version
    memory = StorageWeakRef(host.untyped_storage())  # type: ignore[no-untyped-call]
    return memory, host.storage_offset(), changes
