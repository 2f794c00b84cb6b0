from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eo_zoo.layers.linear import ROWS, Linear, by_onednn, linear


@pytest.mark.parametrize("shape", [(ROWS - 1, 64), (ROWS, 64), (3, 100, 80), (2, 7, 9, 96), (1, 300, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_linear(shape, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(50, shape[-1], requires_grad=True)
    shift = torch.randn(50) if bias else None
    made, expected = linear(x, weight, shift), nn.functional.linear(x, weight, shift)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-4)
    grads = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in (made, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-1)


def test_large_products_are_convolutions_on_a_cpu_and_others_are_not():
    def operations(x, weight):
        with torch.profiler.profile() as profile:
            linear(x, weight)
        return {event.key for event in profile.key_averages()}

    assert "aten::conv2d" in operations(torch.randn(ROWS, 64), torch.randn(8, 64))
    assert "aten::conv2d" not in operations(torch.randn(ROWS - 1, 64), torch.randn(8, 64))
    assert "aten::conv2d" not in operations(torch.randn(ROWS, 64).double(), torch.randn(8, 64).double())


def test_strided_input_and_a_whole_module():
    module = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8))
    ours = copy.deepcopy(module)
    by_onednn(ours)
    assert [type(part) for part in ours] == [Linear, nn.ReLU, Linear]
    x = torch.randn(96, 200).T
    torch.testing.assert_close(ours(x), module(x))
