"""The README.md of a checkpoint of train_tiny_moe.py."""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from router_statistics import measure
from transformers import Qwen3MoeForCausalLM

EVALUATED_SEQUENCES = 64

README = """\
# A tiny MoE with trained routers

A byte-level Qwen3-MoE for tests and benchmarks that need routers which have learned something:
{parameters:.1f} million parameters in bfloat16, 4 layers of 32 experts, 4 experts a token. A
token is a byte; byte 0 ends a document. It writes no useful text.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("examples/tiny_moe")
```

Made by `examples/train_tiny_moe.py` in {trained}. Run it to make
another like it from the text of the machine at hand: the training part of the domains of
`examples/local_text.py`. The load-balancing loss is Switch Transformer's, mean over the layers,
with coefficient 0.01.

The figures below are of text held out from training, {bytes_per_domain} bytes of every domain.
"Without context" is the entropy of those bytes taken one by one.

{domain_table}

Over equal parts of every domain: the load of a layer's busiest expert over the mean load; the share
of choices that fall on its busiest 8 experts, where uniform routing has 25%; how many bits a choice
tells about the domain of its text.

{layer_table}
"""


def describe(checkpoint: Path, trained: str, length: int) -> str:
    """The README.md of a checkpoint, with figures of the checkpoint as it was saved.

    ``trained`` says how it was trained, ``length`` is the bytes of a sequence.
    """
    model = Qwen3MoeForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    statistics = measure(model, "held-out", EVALUATED_SEQUENCES, length)
    return README.format(
        parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        trained=trained,
        bytes_per_domain=EVALUATED_SEQUENCES * length,
        domain_table=markdown(statistics.domain_table()),
        layer_table=markdown(statistics.layer_table()),
    )


def markdown(table: Table) -> str:
    """The table as text."""
    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip()
