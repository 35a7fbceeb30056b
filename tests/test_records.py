"""Descriptions as files: they come back equal, and wrong files say what is wrong with them."""

from pathlib import Path

import pytest

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.models import MODELS
from coxcompile.planner.plan import ExpertSplit, Plan, StagePlan
from coxcompile.planner.records import RecordError, from_builtins, load, save, to_builtins
from coxcompile.planner.workload import LengthGroup, Workload
from coxcompile.systems import SYSTEMS

STAGE = StagePlan(
    qkv="gpu",
    attention="cpu",
    output="gpu",
    micro_batch=8,
    block=64,
    coalesced=True,
    experts=(ExpertSplit(resident=3, migrating=1, cpu=4),) * 2,
    resident_share=0.1,
)
WORKLOAD = Workload(
    groups=(
        LengthGroup(count=3, input_tokens=97, output_tokens=32),
        LengthGroup(count=1, input_tokens=800, output_tokens=256),
    )
)
PLAN = Plan(
    policy="coxmoe",
    model="mixtral-8x7b",
    hardware="rtx6000ada-8452y",
    prefill=STAGE,
    decode=STAGE,
    reasons=("attention of prefill on the CPU: its intermediates would evict experts",),
)
RECORDS = [*MODELS.values(), *SYSTEMS.values(), WORKLOAD, PLAN]


@pytest.mark.parametrize("suffix", [".json", ".toml"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: getattr(record, "name", ""))
def test_a_record_comes_back_equal(record: object, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"record{suffix}"
    save(record, path)
    assert load(type(record), path) == record


def values(**changed: object) -> dict[str, object]:
    return to_builtins(MODELS["mixtral-8x7b"]) | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layrs": 3}, "box: unknown field 'layrs'; a ModelSpec has name, layers"),
        ({"layers": "many"}, "box: .*layers"),
        ({"top_k": 9}, "box: top_k is 9, but there are 8 experts"),
    ],
)
def test_a_wrong_field_is_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_builtins(ModelSpec, values(**changed), "box")


def test_a_missing_field_is_named() -> None:
    incomplete = values()
    del incomplete["hidden"]
    with pytest.raises(RecordError, match="hidden"):
        from_builtins(ModelSpec, incomplete, "box")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"missing\.json"):
        load(HardwareSpec, tmp_path / "missing.json")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(RecordError, match=r"broken\.toml"):
        load(HardwareSpec, broken)
    for use in (lambda path: save(PLAN, path), lambda path: load(Plan, path)):
        with pytest.raises(RecordError, match=r"the suffix must be \.json or \.toml"):
            use(tmp_path / "plan.yaml")
