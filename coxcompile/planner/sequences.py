"""A user's dataset as the token ids it holds, without padding."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def token_sequences(dataset: Sequence[Any]) -> list[torch.Tensor]:
    """The inputs of ``dataset`` as int64 [tokens] on the CPU, each of its own length.

    Args:
        dataset: its items are tensors or lists of token ids ([tokens]), or dicts with ``input_ids``
            and perhaps ``attention_mask``, as tokenizers and ``datasets`` give them ([tokens] or
            [1, tokens]). Tokens where the mask is 0 are dropped.

    Raises:
        ValueError: the dataset is empty, or an input is no sequence of one token or more; the
            message names its position.
    """
    sequences = [_sequence(item, position) for position, item in enumerate(dataset)]
    if not sequences:
        raise ValueError("dataset is empty, but at least one input is needed")
    return sequences


def digest(sequences: Sequence[torch.Tensor]) -> str:
    """A hash over all inputs in their order, to tell datasets apart."""
    hashed = hashlib.sha256()
    for sequence in sequences:
        hashed.update(len(sequence).to_bytes(8, "little"))
        hashed.update(sequence.numpy().tobytes())
    return hashed.hexdigest()[:16]


def _sequence(item: Any, position: int) -> torch.Tensor:
    fields = item if isinstance(item, Mapping) else {"input_ids": item}
    if "input_ids" not in fields:
        raise ValueError(f"dataset[{position}] has no input_ids, but {', '.join(map(str, fields))}")
    ids = _row(fields["input_ids"], f"dataset[{position}]")
    mask = fields.get("attention_mask")
    if mask is not None:
        kept = _row(mask, f"attention_mask of dataset[{position}]").bool()
        if kept.shape != ids.shape:
            raise ValueError(
                f"dataset[{position}] has {len(ids)} input_ids, but an attention_mask of "
                f"{len(kept)}"
            )
        ids = ids[kept]
    if not len(ids):
        raise ValueError(f"dataset[{position}] has no tokens; leave such inputs out")
    return ids.contiguous()


def _row(values: Any, name: str) -> torch.Tensor:
    row = torch.as_tensor(values)
    if row.dim() == 2 and len(row) == 1:
        row = row[0]
    if row.dim() != 1 or row.is_floating_point():
        raise ValueError(
            f"{name} is {str(row.dtype).removeprefix('torch.')} {list(row.shape)}, but must be "
            "integers [tokens]: one sequence an item"
        )
    return row.to("cpu", torch.int64)
