"""``coxmoe stratify``: which experts a workload needs, from a few percent of its inputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InputsError(ValueError):
    """The inputs cannot be read; the message names the file and the line."""


def stratify(
    model: Annotated[Path, typer.Option(help="a local Hugging Face model")],
    data: Annotated[
        Path, typer.Option(help="inputs, one a line: text, or JSON with `input_ids` or `text`")
    ],
    output: Annotated[Path, typer.Option(help="the map to write, .safetensors")],
    fraction: Annotated[float, typer.Option(help="share of the inputs that is probed")] = 0.05,
    clusters: Annotated[int | None, typer.Option(min=1, help="number of clusters")] = None,
    length: Annotated[int, typer.Option(min=1, help="cut inputs to so many tokens")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="inputs probed at once, at most")] = 32,
    seed: Annotated[int, typer.Option(help="of the clustering")] = 0,
    resume: Annotated[
        Path | None, typer.Option(help="file for the state, to go on after an interruption")
    ] = None,
    heat_map: Annotated[Path | None, typer.Option(help="also draw the map, .png")] = None,
) -> None:
    """Count expert choices on prototypes of your inputs, for `coxmoe plan --activation-map`."""
    import torch
    from transformers import AutoModelForCausalLM

    from coxcompile.planner.stratification import stratify as run

    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, local_files_only=True
    )
    inputs = [
        ids[:length] for ids in read_inputs(data, tokenizer_of(model), loaded.config.vocab_size)
    ]
    activation_map = run(
        loaded,
        inputs,
        fraction=fraction,
        clusters=clusters,
        batch_size=batch_size,
        seed=seed,
        resume=resume,
    )
    activation_map.save(output)
    quarter = max(activation_map.experts // 4, 1)
    typer.echo(
        f"{output}: {activation_map.tokens} tokens of {len(inputs)} inputs probed; a quarter of "
        f"the experts would serve {activation_map.hit_ratio(quarter):.0%} of the choices"
    )
    if heat_map is not None:
        from coxcompile.inspect.heat_map import draw_heat_map

        draw_heat_map(activation_map, heat_map)


def tokenizer_of(model: Path) -> "PreTrainedTokenizerBase | None":
    """The tokenizer in the model's directory; None if it has none."""
    if not any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, local_files_only=True)
    return tokenizer


def read_inputs(
    path: Path, tokenizer: "PreTrainedTokenizerBase | None", vocabulary: int
) -> Iterator[list[int]]:
    """Token ids of each line that is not empty; without a tokenizer, of text its bytes.

    Raises:
        InputsError: a line is no JSON object with ``input_ids`` or ``text`` in a .json or .jsonl
            file, or its bytes or ids are not in the model's vocabulary.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputsError(f"{path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text, ids = line, None
        if path.suffix in (".json", ".jsonl"):
            try:
                record = json.loads(line)
                ids, text = record.get("input_ids"), record.get("text", "")
            except (json.JSONDecodeError, AttributeError):
                raise InputsError(f"{path}:{number}: not a JSON object") from None
            if ids is None and not text:
                raise InputsError(f"{path}:{number}: has neither input_ids nor text")
        if ids is None:
            ids = list(text.encode()) if tokenizer is None else tokenizer(text).input_ids
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in ids):
            raise InputsError(
                f"{path}:{number}: token ids must lie in [0, {vocabulary}), the model's vocabulary"
            )
        yield ids
