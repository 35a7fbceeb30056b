"""Train a byte-level MoE language model on text of this machine, so that its routers are real.

Qwen3-MoE with 4 layers of 32 experts, 4 a token, and a load-balancing loss of ordinary strength,
trained for a given number of minutes on a CPU. The checkpoint is bfloat16, below 10 MB, and loads
with transformers.AutoModelForCausalLM.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from local_text import domains, read, sample
from model_card import describe
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "intermediate_size": 256,  # of dense layers, of which there are none
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
    "initializer_range": 0.04,
    "max_position_embeddings": 1024,
    "router_aux_loss_coef": 0.01,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SEQUENCES, LENGTH = 8, 256
PEAK_RATE, WARM_UP = 3e-3, 0.03


def main() -> None:
    """Train, save, measure the checkpoint as saved, describe it in its README.md."""
    arguments = parse_arguments()
    console = Console()
    # Operations this small gain little from a second thread, and wait long for it on shared cores.
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG))
    # The fastest of transformers' implementations in float32 on a CPU, forward and backward.
    model.set_experts_implementation("grouped_mm")
    steps = train(model, arguments.minutes, arguments.seed, console)
    model.bfloat16().save_pretrained(arguments.output)
    trained = (
        f"{steps} steps of {SEQUENCES} x {LENGTH} bytes in {arguments.minutes:g} minutes, "
        f"seed {arguments.seed}"
    )
    readme = describe(arguments.output, trained, LENGTH)
    (arguments.output / "README.md").write_text(readme)
    console.print(readme, markup=False)


def parse_arguments() -> argparse.Namespace:
    """The command line; a bad value ends with an error that names it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="time to train (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "tiny_moe",
        help="folder of the checkpoint (default: examples/tiny_moe)",
    )
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes is {arguments.minutes}; give more than 0")
    return arguments


def train(model: Qwen3MoeForCausalLM, minutes: float, seed: int, console: Console) -> int:
    """Train in place for ``minutes``; the learning rate falls with the time used. Returns steps."""
    generator = torch.Generator().manual_seed(seed)
    names = list(domains())
    # Between equal shares and shares by size: small domains count, without being learned by heart.
    shares = torch.tensor([len(read(name, "train")) for name in names]).double().sqrt()
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    model.train()
    steps, smoothed, started = 0, math.log(256), time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0)
        while (used := (time.monotonic() - started) / (60 * minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(used)
            chosen = torch.multinomial(shares, SEQUENCES, replacement=True, generator=generator)
            ids = torch.cat(
                [sample(names[i], "train", 1, LENGTH, generator) for i in chosen.tolist()]
            )
            output = model(input_ids=ids, output_router_logits=True, use_cache=False)
            loss = cross_entropy(output.logits[:, :-1].transpose(1, 2), ids[:, 1:])
            balance = balancing_loss(output.router_logits, model.config.num_experts_per_tok)
            torch.autograd.backward(loss + model.config.router_aux_loss_coef * balance)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            smoothed += (loss.item() - smoothed) / min(steps, 50)
            bits = smoothed / math.log(2)
            text = f"step {steps}: {bits:.2f} bits a byte, balance {balance.item():.2f}"
            progress.update(task, completed=used, description=text)
            if steps % 100 == 0 and not console.is_terminal:
                console.print(text)
    return steps


def balancing_loss(router_logits: tuple[torch.Tensor, ...], experts_per_token: int) -> torch.Tensor:
    """Switch Transformer's load-balancing loss (equations 4 to 6), mean over the layers.

    Takes logits [tokens, experts] of every layer. Its value where loads are even is
    ``experts_per_token``. transformers pools the loads over the layers instead, which is content
    with layers that use a few experts each, as long as they are not the same ones.
    """
    losses = []
    for logits in router_logits:
        tokens, experts = logits.shape
        probabilities = logits.softmax(-1)
        chosen = probabilities.topk(experts_per_token).indices
        loads = chosen.flatten().bincount(minlength=experts) / tokens
        losses.append(experts * loads.dot(probabilities.mean(0)))
    return torch.stack(losses).mean()


def learning_rate(used: float) -> float:
    """Warm-up, then a cosine to a twentieth of the peak, at the share ``used`` of the time."""
    if used < WARM_UP:
        return PEAK_RATE * used / WARM_UP
    cosine = (1 + math.cos(math.pi * (used - WARM_UP) / (1 - WARM_UP))) / 2
    return PEAK_RATE * (0.05 + 0.95 * cosine)


if __name__ == "__main__":
    main()
