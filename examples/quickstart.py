"""Qwen3-30B-A3B's layers under eager PyTorch, Inductor and coxmoe, side by side in one run.

Prefill is one forward over a batch of prompts, decode a greedy loop with a StaticCache. Rounds of
the three are interleaved, because the machine's memory bandwidth drifts; figures are medians of
rounds.
"""

import argparse
import ctypes
import json
import shutil
import statistics
import sysconfig
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from qwen3_moe import Float32Layers, build_model, load_model, map_weights
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel, StaticCache

from coxcompile.measurement.roofline import measure_roofline
from coxcompile.measurement.scheduling import scheduled_first
from coxcompile.runtime.kernels import inductor_obstacle

BUILD = Path("build")
# Without a C++ compiler Inductor compiles nothing; coxmoe still runs.
BACKENDS = ("eager", "coxmoe") if inductor_obstacle() else ("eager", "inductor", "coxmoe")
ROUNDS = 3
Result = TypeVar("Result")


@dataclass
class Row:
    """One line of the table and of build/demo.json; sizes in bytes, times in seconds."""

    stage: str
    backend: str
    tokens_per_second: float
    speedup_over_inductor: float | None
    relative_error: float
    compile_seconds: float
    peak_bytes: int


class Candidate:
    """One backend with its own cache; the same compiled model serves prefill and decode."""

    def __init__(self, backend: str, model: PreTrainedModel, batch: int, length: int) -> None:
        config = model.config
        self.backend = backend
        self.cache = StaticCache(config=config, max_cache_len=length)
        self.cache.early_initialization(
            batch,
            config.num_key_value_heads,
            config.head_dim,
            torch.bfloat16,
            torch.device("cpu"),
        )
        options: Any = {"dump": str(BUILD / "dump")} if backend == "coxmoe" else None
        self.forward: Callable[..., object] = (
            model
            if backend == "eager"
            else torch.compile(model, backend=backend, options=options, dynamic=False)
        )

    def prefill(self, prompts: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocabulary] after the prompts, in a fresh cache."""
        self.cache.reset()
        return self._step(prompts)

    def decode(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Logits after each of the given tokens [batch, steps]: all backends do the same work."""
        return [self._step(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]

    def _step(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.forward(input_ids=ids, past_key_values=self.cache, logits_to_keep=1)
        return output.logits[:, -1]  # type: ignore[attr-defined]


def main() -> None:
    """Measure, print the table, write build/demo.json."""
    arguments = parse_arguments()
    console = Console()
    # transformers asks a cached function for PyTorch's version while it is traced.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    shutil.rmtree(BUILD / "dump", ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, torch.no_grad():
        rows = measure(arguments, progress)
    (BUILD / "demo.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print_table(rows, console)


def parse_arguments() -> argparse.Namespace:
    """The command line; a bad value ends with an error that names it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="local Hugging Face directory; default: random")
    parser.add_argument("--layers", type=int, default=4, help="layers of the random model")
    parser.add_argument("--batch", type=int, default=8, help="prompts in the batch")
    parser.add_argument("--tokens", type=int, default=128, help="tokens in a prompt")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens to decode")
    parser.add_argument("--weights", choices=("memory", "mmap"), default="memory")
    arguments = parser.parse_args()
    for name in ("layers", "batch", "tokens", "new_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; give 1 or more"
            )
    if arguments.model is not None and not (arguments.model / "config.json").is_file():
        parser.error(f"--model is {arguments.model}; give a directory that holds config.json")
    return arguments


def measure(arguments: argparse.Namespace, progress: Progress) -> list[Row]:
    """Every stage under every backend."""

    def say(text: str) -> None:
        progress.update(task, description=text)

    task = progress.add_task("making the model")
    model = load_model(arguments.model) if arguments.model else build_model(arguments.layers)
    if arguments.weights == "mmap":
        say("writing the weights, to map them")
        model = map_weights(model, BUILD / "weights")
    batch, length = arguments.batch, arguments.tokens + arguments.new_tokens
    prompts = [read_prompts(arguments, round_) for round_ in range(ROUNDS + 1)]
    candidates = {name: Candidate(name, model, batch, length) for name in BACKENDS}

    say("greedy reference in eager")
    tokens = greedy_tokens(candidates["eager"], prompts[0], arguments.new_tokens)
    say("the same in float32, layer by layer")
    with Float32Layers(model):
        whole = torch.cat([prompts[0], tokens], dim=1)
        output = model(input_ids=whole, logits_to_keep=arguments.new_tokens + 1, use_cache=False)
        reference = output.logits

    first: dict[tuple[str, str], float] = {}
    peaks: dict[str, int] = {}
    errors: dict[tuple[str, str], float] = {}
    for name, candidate in candidates.items():
        say(f"{name}: first calls (compilation)")
        reset_peak()
        seconds, logits = timed(partial(candidate.prefill, prompts[0]))
        first[name, "prefill"] = seconds
        errors[name, "prefill"] = median_error(logits, reference[:, 0])
        seconds, steps = timed(partial(candidate.decode, tokens))
        first[name, "decode"] = seconds
        errors[name, "decode"] = median_error(torch.stack(steps, dim=1), reference[:, 1:])
        peaks[name] = peak_resident_bytes()

    measured: dict[tuple[str, str], list[float]] = {key: [] for key in first}
    for round_ in range(ROUNDS):
        say(f"round {round_ + 1} of {ROUNDS}")
        with scheduled_first():
            rates = measure_roofline()
            for name, candidate in candidates.items():
                seconds, _ = timed(partial(candidate.prefill, prompts[round_ + 1]))
                measured[name, "prefill"].append(seconds)
                seconds, _ = timed(partial(candidate.decode, tokens))
                measured[name, "decode"].append(seconds)
        progress.console.print(
            f"round {round_ + 1}: memory reads {rates.read_bytes_per_second / 1e9:.0f} GB/s, "
            f"bfloat16 products {rates.gemm_flops_per_second / 1e9:.0f} GFLOP/s",
            style="dim",
        )

    count = {"prefill": batch * arguments.tokens, "decode": batch * arguments.new_tokens}
    median = {key: statistics.median(values) for key, values in measured.items()}

    def speedup(other: str, name: str, stage: str) -> float | None:
        return median[other, stage] / median[name, stage] if other in BACKENDS else None

    return [
        Row(
            stage,
            name,
            count[stage] / median[name, stage],
            speedup("inductor", name, stage),
            errors[name, stage],
            0.0 if name == "eager" else max(0.0, first[name, stage] - median[name, stage]),
            peaks[name],
        )
        for stage in ("prefill", "decode")
        for name in BACKENDS
    ]


def read_prompts(arguments: argparse.Namespace, round_: int) -> torch.Tensor:
    """Token ids [batch, tokens] of Python's own library, or its bytes; new ones a round."""
    text = "".join(
        path.read_text(errors="ignore")
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    )
    if arguments.model is not None and (arguments.model / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, local_files_only=True)
        ids = torch.tensor(tokenizer(text).input_ids)
    else:
        ids = torch.tensor(list(text.encode()))
    size = arguments.batch * arguments.tokens
    repeated = ids.repeat(1 + (round_ + 1) * size // len(ids))
    return repeated[round_ * size : (round_ + 1) * size].view(arguments.batch, arguments.tokens)


def greedy_tokens(candidate: Candidate, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` most likely next tokens [batch, count]."""
    tokens = [candidate.prefill(prompts).argmax(-1, keepdim=True)]
    while len(tokens) < count:
        tokens.append(candidate.decode(tokens[-1])[0].argmax(-1, keepdim=True))
    return torch.cat(tokens, dim=1)


def median_error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Median over positions of the relative Frobenius error of the logits.

    A median, because in bfloat16 a near-tie in a router flips a token's expert now and then, in
    eager as in compiled code, and one such token would decide a mean.
    """
    difference = (logits.double() - reference.double()).norm(dim=-1)
    return float((difference / reference.double().norm(dim=-1)).median())


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds and result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def reset_peak() -> None:
    """Give freed memory back and restart the kernel's high-water mark of resident memory.

    The backends share the process and the weights, and run in the order of the table: what a
    backend keeps counts against those after it, so coxmoe's peak is if anything too high.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    """Highest resident size since :func:`reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def print_table(rows: list[Row], console: Console) -> None:
    """The comparison, and where to look next."""
    table = Table(title="Qwen3-MoE in bfloat16 on this CPU (medians of interleaved rounds)")
    headings = ("stage", "backend", "tokens/s", "vs eager", "vs Inductor", "error", "compile")
    for heading in (*headings, "peak memory"):
        table.add_column(heading, justify="left" if heading in ("stage", "backend") else "right")
    rates = {(row.stage, row.backend): row.tokens_per_second for row in rows}
    for row in rows:
        table.add_row(
            row.stage,
            row.backend,
            f"{row.tokens_per_second:.1f}",
            f"{row.tokens_per_second / rates[row.stage, 'eager']:.2f}x",
            "" if row.speedup_over_inductor is None else f"{row.speedup_over_inductor:.2f}x",
            f"{row.relative_error:.1e}",
            f"{row.compile_seconds:.0f} s",
            f"{row.peak_bytes / 1e9:.2f} GB",
            style="bold" if row.backend == "coxmoe" else None,
        )
    console.print(table)
    console.print("error: relative Frobenius error of the logits against the model in float32")
    for stage in ("prefill", "decode"):
        best = max(BACKENDS[:-1], key=lambda name: rates[stage, name])
        if rates[stage, "coxmoe"] < rates[stage, best]:
            console.print(f"coxmoe is slower than {best} in {stage} in this run", style="red")
    console.print(f"graphs after every pass: {BUILD / 'dump'}; figures: {BUILD / 'demo.json'}")


if __name__ == "__main__":
    main()
