"""What a byte-level MoE's loss and routers are on each domain of local_text."""

import math
from dataclasses import dataclass

import torch
from local_text import Split, domains, sample
from rich.box import MARKDOWN
from rich.table import Table
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

SEQUENCES_AT_ONCE = 16


@dataclass(frozen=True)
class RouterStatistics:
    """Figures of one model on the same number of tokens of every domain.

    ``bits``: cross entropy, bits a byte. ``unigram_bits``: entropy of the same bytes one by one,
    which no model without context can beat. ``counts``: expert choices, int64
    [domains, layers, experts].
    """

    bits: dict[str, float]
    unigram_bits: dict[str, float]
    counts: torch.Tensor

    def shares(self) -> torch.Tensor:
        """Each expert's share of its layer's choices: float64 [domains, layers, experts]."""
        return self.counts / self.counts.sum(-1, keepdim=True, dtype=torch.float64)

    def imbalance(self) -> torch.Tensor:
        """Load of each layer's busiest expert over the mean load: [layers]."""
        return self.shares().mean(0).amax(-1) * self.counts.shape[-1]

    def quarter_share(self) -> torch.Tensor:
        """Share of choices that fall on each layer's busiest quarter of experts: [layers].

        The hit ratio of an ideal placement with a quarter of the experts resident.
        """
        kept = self.counts.shape[-1] // 4
        return self.shares().mean(0).topk(kept, dim=-1).values.sum(-1)

    def mutual_information(self) -> torch.Tensor:
        """Bits that a choice tells about its domain, domains being equally likely: [layers]."""
        shares = self.shares()
        mixture = shares.mean(0)
        within = torch.special.entr(shares).sum(-1).mean(0)
        information: torch.Tensor = torch.special.entr(mixture).sum(-1) - within
        return information / math.log(2)

    def domain_table(self) -> Table:
        """Loss of every domain."""
        table = Table("domain", "bits a byte", "without context", box=MARKDOWN)
        for domain, bits in self.bits.items():
            table.add_row(domain, f"{bits:.2f}", f"{self.unigram_bits[domain]:.2f}")
        return table

    def layer_table(self) -> Table:
        """The routers of every layer, over equal parts of every domain."""
        headings = ("busiest expert / mean", "busiest quarter's share", "bits about the domain")
        table = Table("layer", *headings, box=MARKDOWN)
        figures = zip(
            self.imbalance(), self.quarter_share(), self.mutual_information(), strict=True
        )
        for layer, (imbalance, quarter, information) in enumerate(figures):
            table.add_row(str(layer), f"{imbalance:.2f}", f"{quarter:.0%}", f"{information:.2f}")
        return table


@torch.no_grad()
def measure(
    model: PreTrainedModel, split: Split, sequences: int, length: int, seed: int = 0
) -> RouterStatistics:
    """Run ``sequences`` samples of ``length`` tokens of every domain through the model."""
    generator = torch.Generator().manual_seed(seed)
    experts = model.config.num_experts
    bits, unigram_bits, counts = {}, {}, []
    for domain in domains():
        ids = sample(domain, split, sequences, length, generator)
        losses, domain_counts = [], torch.zeros(model.config.num_hidden_layers, experts)
        for start in range(0, sequences, SEQUENCES_AT_ONCE):
            part = ids[start : start + SEQUENCES_AT_ONCE]
            output = model(input_ids=part, output_router_logits=True, use_cache=False)
            logits = output.logits[:, :-1].transpose(1, 2).float()
            losses.append(cross_entropy(logits, part[:, 1:], reduction="none").flatten())
            for layer, router_logits in enumerate(output.router_logits):
                chosen = router_logits.topk(model.config.num_experts_per_tok).indices
                domain_counts[layer] += chosen.flatten().bincount(minlength=experts)
        bits[domain] = float(torch.cat(losses).mean()) / math.log(2)
        probabilities = ids.flatten().bincount().double() / ids.numel()
        unigram_bits[domain] = float(torch.special.entr(probabilities).sum()) / math.log(2)
        counts.append(domain_counts.long())
    return RouterStatistics(bits, unigram_bits, torch.stack(counts))
