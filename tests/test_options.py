import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch._dynamo.exc import BackendCompilerFailed

import coxcompile
from coxcompile.coexecution import refuse_contradictions
from coxcompile.options import Options, OptionsError
from coxcompile.passes.plan import accelerator_name
from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.plan import ExpertSplit, Plan, StagePlan
from coxcompile.planner.policies import POLICIES
from coxcompile.planner.records import save
from coxcompile.systems import SYSTEMS

ROOT = Path(__file__).parent.parent
FIELDS = dataclasses.fields(Options)
NAMES = [field.name for field in FIELDS]
DEFAULTS = {field.name: field.default for field in FIELDS}

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
)


@pytest.fixture(autouse=True)
def _no_dump_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COXMOE_DUMP", raising=False)


def problems_of(options: Any) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as caught:
        Options.from_user(options)
    return caught.value.problems


@pytest.mark.parametrize("options", [None, {}, MappingProxyType({})])
def test_nothing_given_means_the_defaults(options: Any) -> None:
    assert Options.from_user(options) == Options()


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_every_option_is_declared_and_accepts_its_own_default(
    field: dataclasses.Field[Any],
) -> None:
    assert set(field.metadata) == {"help", "check", "environment"}
    assert field.metadata["help"].endswith(".")
    assert Options.from_user({field.name: field.default}) == Options()


def test_given_values_are_stored(tmp_path: Path) -> None:
    options = Options.from_user(
        {
            "training": "eager",
            "dump": tmp_path,
            "pack_linears": False,
            "packed_weight_budget": 0.25,
        }
    )
    assert options == Options(
        training="eager", dump=tmp_path, pack_linears=False, packed_weight_budget=0.25
    )


def test_options_are_immutable_and_hashable() -> None:
    assert hash(Options()) == hash(Options.from_user({}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().training = "eager"  # type: ignore[misc]


def test_an_integer_share_is_stored_as_a_float() -> None:
    budget = Options.from_user({"packed_weight_budget": 1}).packed_weight_budget
    assert isinstance(budget, float)


@given(st.floats(0, 1))
def test_every_share_from_0_to_1_is_accepted(budget: float) -> None:
    assert Options.from_user({"packed_weight_budget": budget}).packed_weight_budget == budget


@given(ANYTHING)
def test_a_share_is_nothing_but_a_number_from_0_to_1(value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assume(not (is_number and 0 <= value <= 1))  # type: ignore[operator]
    (problem,) = problems_of({"packed_weight_budget": value})
    assert "a number from 0 to 1" in problem


@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -0.01, 1.01, "0.5", None])
def test_what_only_resembles_a_share_is_refused(value: object) -> None:
    (problem,) = problems_of({"packed_weight_budget": value})
    assert problem == (
        f'option "packed_weight_budget": got {value!r} ({type(value).__name__});'
        " allowed: a number from 0 to 1"
    )


@pytest.mark.parametrize("value", [0, 1, "True", None, [], torch.tensor(True)])
def test_what_only_resembles_a_flag_is_refused(value: object) -> None:
    (problem,) = problems_of({"pack_linears": value})
    assert problem.startswith('option "pack_linears": got ')
    assert problem.endswith(f"({type(value).__name__}); allowed: True or False")


def test_a_misspelt_choice_names_the_nearest_one() -> None:
    assert problems_of({"training": "EAGRE"}) == (
        "option \"training\": got 'EAGRE' (str);"
        ' allowed: "error" or "eager"; did you mean "eager"?',
    )


@pytest.mark.parametrize("value", [True, None, 3, "compile", ["eager"]])
def test_a_wrong_choice_with_nothing_near_gets_no_suggestion(value: object) -> None:
    assert problems_of({"training": value}) == (
        f'option "training": got {value!r} ({type(value).__name__}); allowed: "error" or "eager"',
    )


def test_an_unknown_option_names_the_nearest_one_and_all_allowed_ones() -> None:
    assert problems_of({"PACK-LINEARS": True}) == (
        f'unknown option "PACK-LINEARS"; allowed: {", ".join(NAMES)}; did you mean "pack_linears"?',
    )


@given(st.one_of(st.text(max_size=20), st.integers(), st.none(), st.binary(max_size=5)))
def test_every_unknown_option_is_an_error(name: object) -> None:
    assume(name not in NAMES)
    (problem,) = problems_of({name: True})
    assert problem.startswith("unknown option ")
    assert all(known in problem for known in NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
def test_one_dropped_letter_is_always_recognised(name: str, data: st.DataObject) -> None:
    dropped = data.draw(st.integers(0, len(name) - 1))
    misspelt = name[:dropped] + name[dropped + 1 :]
    (problem,) = problems_of({misspelt: DEFAULTS[name]})
    # cpu_kernels and gpu_kernels without their first letters are the same.
    meant = [known for known in NAMES if misspelt in _with_one_letter_dropped(known)]
    assert any(problem.endswith(f'did you mean "{known}"?') for known in meant)


def _with_one_letter_dropped(name: str) -> set[str]:
    return {name[:dropped] + name[dropped + 1 :] for dropped in range(len(name))}


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(OptionsError) as caught:
        Options.from_user({"trainng": "eager", "pack_linears": 1, "dump": 2, "training": "eager"})
    error = caught.value
    assert len(error.problems) == 3
    assert str(error) == "3 problems with the options of coxmoe:" + "".join(
        f"\n  - {problem}" for problem in error.problems
    )
    for name in ("trainng", "pack_linears", "dump"):
        assert sum(f'"{name}"' in problem for problem in error.problems) == 1


@given(st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), ANYTHING))
def test_any_dict_gives_options_or_one_problem_an_entry_at_most(options: dict[str, object]) -> None:
    try:
        accepted = Options.from_user(options)
    except OptionsError as error:
        problems = error.problems
    else:
        problems = ()
        assert type(accepted.packed_weight_budget) is float
        assert type(accepted.pack_linears) is bool
        assert accepted.dump is None or isinstance(accepted.dump, Path)
    assert len(problems) <= len(options)
    assert bool(problems) or set(options) <= set(NAMES)


def test_an_options_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown option"):
        Options.from_user({"max_autotune": True})


@pytest.mark.parametrize("options", [[("training", "eager")], "training", 1])
def test_options_that_are_no_dict_are_refused(options: object) -> None:
    (problem,) = problems_of(options)
    assert problem.endswith("allowed: a dict from option names to values")


def test_a_large_value_does_not_bury_the_message() -> None:
    (problem,) = problems_of({"training": torch.zeros(1000, 1000)})
    assert len(problem) < 200


# dump


@pytest.mark.parametrize("convert", [str, Path], ids=["str", "Path"])
def test_dump_takes_an_existing_or_a_new_directory_and_makes_none(
    convert: Callable[[Path], object], tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "new" / "deep"):
        assert Options.from_user({"dump": convert(path)}).dump == path
    assert not (tmp_path / "new").exists()


def test_dump_expands_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Options.from_user({"dump": "~/graphs"}).dump == tmp_path / "graphs"


@pytest.mark.parametrize("below", ["", "graphs", "graphs/deep"])
def test_dump_refuses_what_cannot_become_a_directory(below: str, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.touch()
    path = str(occupied / below)
    (problem,) = problems_of({"dump": path})
    assert problem.startswith(
        f'option "dump": got {path!r} (str), but "{occupied}" is not a directory;'
    )


def test_a_relative_dump_is_checked_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Options.from_user({"dump": "graphs"}).dump == Path("graphs")
    Path("graphs").touch()
    problems_of({"dump": "graphs"})


@pytest.mark.parametrize("value", ["", b"graphs", True, 1, ["graphs"]])
def test_dump_refuses_what_is_no_path(value: object) -> None:
    (problem,) = problems_of({"dump": value})
    assert problem.endswith("allowed: the path of a directory (str or os.PathLike), or None")


def test_the_environment_gives_dump_when_the_user_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COXMOE_DUMP", str(tmp_path))
    assert Options.from_user(None).dump == tmp_path
    assert Options.from_user({"training": "eager"}).dump == tmp_path
    assert Options.from_user({"dump": tmp_path / "own"}).dump == tmp_path / "own"
    assert Options.from_user({"dump": None}).dump is None


def test_an_empty_environment_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COXMOE_DUMP", "")
    assert Options.from_user(None).dump is None


def test_a_wrong_environment_variable_is_blamed_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    occupied = tmp_path / "occupied"
    occupied.touch()
    monkeypatch.setenv("COXMOE_DUMP", str(occupied))
    (problem,) = problems_of(None)
    assert problem.startswith("environment variable COXMOE_DUMP: got ")


# Co-execution


@pytest.mark.parametrize("value", ["auto", "cuda", "emulated", "none"])
def test_accelerators(value: str) -> None:
    assert Options.from_user({"accelerator": value}).accelerator == value


def test_a_misspelt_accelerator_names_the_nearest_one() -> None:
    assert problems_of({"accelerator": "CUDA:0"}) == (
        "option \"accelerator\": got 'CUDA:0' (str); "
        'allowed: "auto" or "cuda" or "emulated" or "none"; did you mean "cuda"?',
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (1, 1),
        (20 * 2**30, 20 * 2**30),
        ("4096", 4096),
        ("20GiB", 20 * 2**30),
        ("20 gib", 20 * 2**30),
        (" 1.5 GB ", 1_500_000_000),
        ("64MiB", 2**26),
        ("0.1GB", 100_000_000),
        ("1TiB", 2**40),
        ("3kb", 3000),
    ],
)
def test_vram_is_a_number_of_bytes(value: object, expected: int | None) -> None:
    assert Options.from_user({"vram": value}).vram == expected


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 1.5, True, b"1GB", math.inf, "", "GiB", "20 G", "1e9", "1.2.3GB", ".5GB", "-1GB"),
        *("0.4", "0GiB", "٣GB", "9" * 400 + "x"),
    ],
)
def test_vram_refuses_what_is_no_positive_number_of_bytes(value: object) -> None:
    (problem,) = problems_of({"vram": value})
    assert problem.endswith('allowed: a positive number of bytes, or text such as "20GiB", or None')


@given(st.integers(1, 10**400), st.sampled_from(["", "KiB", "GB"]))
def test_vram_of_any_size_is_exact(number: int, unit: str) -> None:
    scale = {"": 1, "KiB": 1024, "GB": 10**9}[unit]
    assert Options.from_user({"vram": f"{number}{unit}"}).vram == number * scale


STAGE = StagePlan(
    qkv="gpu",
    attention="cpu",
    output="gpu",
    micro_batch=1,
    block=4,
    coalesced=True,
    experts=(ExpertSplit(resident=1, migrating=1, cpu=6),),
    staging_experts=2,
)
PLAN = Plan(policy="mine", model="m", hardware="h", prefill=STAGE, decode=STAGE)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_by_its_name(name: str) -> None:
    assert Options.from_user({"plan": name}).plan == name
    assert Options.from_user({"plan": name.upper()}).plan == name


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_plan_or_its_file(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"plan{suffix}"
    save(PLAN, file)
    for value in (PLAN, file, str(file)):
        assert Options.from_user({"plan": value}).plan == PLAN


def test_an_unknown_policy_lists_those_there_are() -> None:
    (problem,) = problems_of({"plan": "coxmeo"})
    assert problem == (
        f"option \"plan\": got 'coxmeo' (str), but no policy 'coxmeo'; there are "
        f"{', '.join(POLICIES)}; did you mean coxmoe?; allowed: a Plan, a policy's name, or a "
        "plan's .json or .toml file"
    )


def test_a_damaged_plan_names_the_file_and_the_field(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"policy": "mine"}')
    (problem,) = problems_of({"plan": file})
    assert f"{file}: Object missing required field `model`" in problem
    (problem,) = problems_of({"plan": str(tmp_path / "missing.json")})
    assert "missing.json: " in problem
    assert "No such file" in problem


@pytest.mark.parametrize("value", [None, 3, True, "", b"coxmoe", ["coxmoe"]])
def test_what_is_no_plan(value: object) -> None:
    (problem,) = problems_of({"plan": value})
    assert problem.startswith(f'option "plan": got {value!r}')


def test_hardware_by_name_or_file(tmp_path: Path) -> None:
    for name, system in SYSTEMS.items():
        assert Options.from_user({"hardware": name}).hardware == system
        assert Options.from_user({"hardware": system}).hardware is system
    file = tmp_path / "machine.json"
    save(system, file)
    assert Options.from_user({"hardware": file}).hardware == system
    assert Options.from_user({"hardware": None}).hardware is None


def test_unknown_hardware_lists_the_systems() -> None:
    (problem,) = problems_of({"hardware": "rtx6000"})
    assert all(name in problem for name in SYSTEMS)
    assert "did you mean rtx6000ada-8452y?" in problem


@pytest.mark.parametrize("value", [3, True, "", [], b"h100"])
def test_what_is_no_hardware(value: object) -> None:
    (problem,) = problems_of({"hardware": value})
    assert problem.startswith(f'option "hardware": got {value!r}')


def test_an_activation_map_or_its_file(tmp_path: Path) -> None:
    activation_map = ActivationMap(
        counts=np.ones((2, 8), dtype=np.int64),
        layers=("model.layers.0.mlp", "model.layers.1.mlp"),
        model="m",
        tokens=4,
        strategy="random",
        seed=0,
    )
    file = tmp_path / "map.safetensors"
    activation_map.save(file)
    assert Options.from_user({"activation_map": activation_map}).activation_map is activation_map
    loaded = Options.from_user({"activation_map": str(file)}).activation_map
    assert loaded is not None
    assert (loaded.layers, loaded.tokens) == (activation_map.layers, 4)
    (problem,) = problems_of({"activation_map": tmp_path / "none.safetensors"})
    assert "write one with coxcompile.stratify" in problem
    (problem,) = problems_of({"activation_map": 3})
    assert problem.endswith("allowed: a coxcompile.ActivationMap, the file of one, or None")


def test_sessions() -> None:
    session = coxcompile.Session(record=True)
    assert Options.from_user({"session": session}).session is session
    assert Options.from_user({"session": None}).session is None
    (problem,) = problems_of({"session": "mine"})
    assert problem.endswith("allowed: a coxcompile.Session, or None")


def refused_by_torch_compile(options: dict[str, Any]) -> tuple[str, ...]:
    torch._dynamo.reset()
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="coxmoe", options=options)
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as caught:
        compiled(torch.ones(1, 2))
    error = caught.value.inner_exception
    assert isinstance(error, OptionsError)
    return error.problems


@pytest.mark.parametrize("accelerator", ["none", "auto"])
def test_only_the_emulated_accelerator_can_be_slowed_down(
    accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused_by_torch_compile({"throttle": True, "accelerator": accelerator}) == (
        'option "throttle": got True, but only accelerator="emulated" can be slowed down',
    )


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (problem,) = refused_by_torch_compile({"accelerator": "cuda"})
    assert problem == (
        'option "accelerator": got "cuda", but torch finds no CUDA device; use "auto" or "none"'
    )


def test_what_is_only_done_without_an_accelerator() -> None:
    problems = refused_by_torch_compile(
        {
            "accelerator": "emulated",
            "count_choices": coxcompile.ChoiceCounts(),
            "pack_linears": True,
        }
    )
    assert [problem.split(":")[0] for problem in problems] == [
        'option "count_choices"',
        'option "pack_linears"',
    ]
    assert all('use accelerator="none"' in problem for problem in problems)


def test_contradictions_are_reported_together() -> None:
    options = Options(accelerator="cuda", throttle=True, pack_linears=True)
    with pytest.raises(OptionsError) as caught:
        refuse_contradictions(options, "cuda")
    assert len(caught.value.problems) == 2 + (not torch.cuda.is_available())


@pytest.mark.parametrize(
    ("options", "accelerator"),
    [
        ({"throttle": True, "accelerator": "emulated"}, "emulated"),
        ({"pack_linears": True}, "none"),
        ({"count_choices": coxcompile.ChoiceCounts()}, "none"),
    ],
)
def test_what_goes_together(options: dict[str, Any], accelerator: str) -> None:
    refuse_contradictions(Options.from_user(options), accelerator)


def test_auto_is_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "none")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)  # noqa: B023
        assert accelerator_name(Options()) == expected
        assert accelerator_name(Options(accelerator="emulated")) == "emulated"


# torch.compile and the documentation


def test_torch_compile_shows_the_error_as_documented() -> None:
    def coxmoe(graph_module: torch.fx.GraphModule, inputs: Any, options: Any) -> Any:
        Options.from_user(options)
        return graph_module

    compiled = torch.compile(
        torch.nn.Linear(2, 2), backend=coxmoe, options={"trainng": "eager", "pack_linears": "yes"}
    )
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(torch.ones(1, 2))
    assert isinstance(caught.value.inner_exception, OptionsError)
    assert str(caught.value.inner_exception) in (ROOT / "docs" / "options.md").read_text()


def test_the_documentation_lists_every_option_as_it_is_declared() -> None:
    text = (ROOT / "docs" / "options.md").read_text()
    documented = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| `.*$", text, re.M)
    ]
    declared = []
    for field in FIELDS:
        default = f'"{field.default}"' if isinstance(field.default, str) else repr(field.default)
        environment = field.metadata["environment"]
        if environment:
            default = f"`{default}`, or the environment variable `{environment}`"
        else:
            default = f"`{default}`"
        declared.append(
            [f"`{field.name}`", default, field.metadata["check"].allowed, field.metadata["help"]]
        )
    assert documented == declared
