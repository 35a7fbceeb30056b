"""PyTorch's operators on the emulated accelerator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coxcompile.runtime import emulated
from tests import emulated_cases
from tests.emulated_cases import fill

device_fixture = emulated_cases.device_fixture


@pytest.mark.parametrize(
    "operator",
    [
        lambda a, b: a + b,
        lambda a, b: b + a,
        lambda a, b: a.add_(b),
        lambda a, b: a @ b,
        lambda a, b: torch.cat([b, a]),
        lambda a, b: torch.nn.functional.linear(a, b),
        lambda a, b: torch.where(b > 0, a, a),
        lambda a, b: a.index_put_((b.long(),), a[0, 0]),
        lambda a, b: torch.addmm(a, b, b),
    ],
)
def test_devices_must_not_be_mixed(device: torch.device, operator: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=r"[Ee]xpected all tensors to be on the same device"):
        operator(torch.ones(3, 3, device=device), torch.ones(3, 3))


def test_cpu_scalars_may_be_mixed_in(device: torch.device) -> None:
    values = torch.ones(3, device=device)
    assert (values * torch.tensor(2.0)).cpu().sum() == 6
    assert (values + 1).cpu().sum() == 6
    values[1] = torch.tensor(5.0)
    assert values.cpu().equal(torch.tensor([1.0, 5.0, 1.0]))


def test_operators_follow_the_stream(device: torch.device) -> None:
    values = torch.empty(4, device=device)
    fill(values, 1.0, seconds=0.01)
    result = values * 2
    assert result.device == device
    assert result.cpu().eq(2).all()


@pytest.mark.parametrize(
    "view",
    [
        torch.t,
        lambda x: x[1:3, ::2],
        lambda x: x.view(2, 12),
        lambda x: x.reshape(-1),
        lambda x: x.t().reshape(-1),
        lambda x: x.as_strided((2, 2), (1, 2), 3),
        lambda x: x.unfold(1, 2, 2),
        lambda x: x.unbind(1)[2],
        lambda x: x.chunk(2)[1],
        lambda x: x[None].expand(2, 4, 6),
        lambda x: x.view(torch.int32),
        lambda x: x.diagonal(),
        lambda x: x.permute(1, 0),
        lambda x: x.flatten().unflatten(0, (6, 4)),
        lambda x: x.select(0, 1).narrow(0, 1, 3),
        lambda x: torch.view_as_complex(x.view(4, 3, 2)),
        lambda x: torch.view_as_real(torch.view_as_complex(x.view(4, 3, 2))),
        lambda x: x.movedim(0, 1).squeeze().unsqueeze(0),
    ],
)
def test_views(device: torch.device, view: Callable[..., Any]) -> None:
    values = torch.arange(24.0).view(4, 6)
    on_device = values.to(device)
    viewed = view(on_device)
    assert viewed.untyped_storage().data_ptr() == on_device.untyped_storage().data_ptr() or (
        not view(values)._is_view()
    )
    assert viewed.stride() == view(values).stride()
    assert viewed.cpu().equal(view(values))


def test_writing_through_a_view(device: torch.device) -> None:
    values = torch.zeros(4, 6, device=device)
    values[1:3, ::2].fill_(1)
    values.t()[5].add_(2)
    expected = torch.zeros(4, 6)
    expected[1:3, ::2] = 1
    expected.t()[5] += 2
    assert values.cpu().equal(expected)


def test_out_arguments(device: torch.device) -> None:
    out = torch.empty(0, device=device)
    torch.add(torch.ones(3, device=device), 1, out=out)
    assert out.cpu().equal(torch.full((3,), 2.0))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model(device: torch.device, mode: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.randn(2, 5, 8)
    with mode():
        expected = model(tokens)
        result = model.to(device)(tokens.to(device))
        assert result.device == device
        torch.testing.assert_close(result.cpu(), expected)


def test_functional_graphs(device: torch.device) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: torch.nn.functional.silu(x) + 1, backend=backend)
    values = torch.randn(3)
    torch.testing.assert_close(
        compiled(values.to(device)).cpu(), torch.nn.functional.silu(values) + 1
    )
    assert len(graphs) == 1


def test_random_numbers_are_the_cpus(device: torch.device) -> None:
    torch.manual_seed(3)
    on_device = torch.randn(4, device=device)
    torch.manual_seed(3)
    assert on_device.cpu().equal(torch.randn(4))


def test_as_host_of_a_cpu_tensor_is_itself(device: torch.device) -> None:
    tensor = torch.ones(3)
    assert emulated.as_host(tensor) is tensor
