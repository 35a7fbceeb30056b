"""A model compiled with counting on: token ids in, counts of expert choices out."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coxcompile.runtime.choice_counts import ChoiceCounts

# What a prefill that nobody decodes after can do without, where the model's forward takes it.
_PREFILL_ONLY = {"use_cache": False, "logits_to_keep": 1}


class CountingModel:
    """Runs prefill through ``backend="coxmoe"`` with the option ``count_choices``.

    Compiles at the first call: once for batches of one input, once for all others. Strategies take
    it in place of the model, so that several compile it once.

    Attributes:
        model: the model as it was given, uncompiled.
        name: its class, and its config's name or path.

    Raises:
        ValueError: the model is in training mode, where routers may draw at random.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model: torch.nn.Module = getattr(model, "_orig_mod", model)
        if self.model.training:
            raise ValueError("model is in training mode; call model.eval() before probing it")
        path = getattr(getattr(self.model, "config", None), "_name_or_path", "")
        self.name = f"{type(self.model).__name__} {path}".strip()
        self._counts = ChoiceCounts()
        accepted = inspect.signature(self.model.forward).parameters
        self._keywords = {k: v for k, v in _PREFILL_ONLY.items() if k in accepted}
        # Isolated: graphs that others compiled of this model are neither used nor counted towards
        # Dynamo's limit, past which it would run uncompiled and uncounted.
        self._compiled: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
            self.model,
            backend="coxmoe",
            options={"count_choices": self._counts},
            dynamic=True,
            isolate_recompiles=True,
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """For each MoE layer the path of its experts; known after the first :meth:`count`."""
        return self._counts.layers

    def count(self, input_ids: torch.Tensor) -> np.ndarray:
        """Expert choices of one batch, int64 [MoE layers, experts]; each row has tokens · top_k.

        Args:
            input_ids: integers [inputs, tokens], without padding: every token is counted.

        Raises:
            ValueError: the compiler rewrote no MoE block, or left one alone.
            RuntimeError: some layer did not count every token once.
        """
        self._counts.reset()
        device = next(self.model.parameters()).device
        with torch.inference_mode(), warnings.catch_warnings():
            # Of Dynamo, about functions of transformers that cache what they found out.
            warnings.filterwarnings("ignore", message=".*lru_cache.*", category=UserWarning)
            self._compiled(input_ids=input_ids.to(device), **self._keywords)
        self._require_all_counted()
        counts = self._counts.to_numpy()
        choices = counts.sum(axis=1)
        if not choices[0] or choices[0] % input_ids.numel() or (choices != choices[0]).any():
            raise RuntimeError(
                f"{self.name}: the layers counted {choices.tolist()} expert choices of "
                f"{input_ids.numel()} tokens, but each layer must count every token alike. Dynamo "
                'ran part of the model uncompiled; TORCH_LOGS="recompiles,graph_breaks" says why'
            )
        return counts

    def _require_all_counted(self) -> None:
        if self._counts.skipped:
            path, reason = next(iter(self._counts.skipped.items()))
            raise ValueError(
                f"{len(self._counts.skipped)} MoE block(s) of {self.name} are not recognised and "
                f"so not counted; the first is {path}: {reason}"
            )
        if not self._counts.layers:
            raise ValueError(
                f"no MoE block was found in {self.name}; print(coxcompile.explain(model, "
                "input_ids=...)) says why. Models of transformers need experts_implementation="
                '"grouped_mm" or "batched_mm"'
            )
