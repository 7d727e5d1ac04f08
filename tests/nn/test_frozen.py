"""The modules that only freezing makes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupfx.errors import UsageError
from groupfx.nn import ChannelTranspose, ConstantChannels, MaskedConv1d, MaskedConv2d, MaskedConv3d

MASK = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
KINDS = {1: (nn.Conv1d, MaskedConv1d), 2: (nn.Conv2d, MaskedConv2d), 3: (nn.Conv3d, MaskedConv3d)}


def masked(dims: int = 2, mask: torch.Tensor = MASK) -> nn.Module:
    plain, kind = KINDS[dims]
    conv = plain(3, 5, 2, padding=1, padding_mode="circular")
    if mask.dtype == torch.bool:
        with torch.no_grad():
            conv.weight[~mask] = 0
    return kind.of(conv, mask)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_a_masked_conv_is_the_conv_of_its_weight(dims: int, grad: bool) -> None:
    conv = masked(dims)
    x = torch.randn(2, 3, *(5, 4, 6)[:dims])
    padded = F.pad(x, [1] * 2 * dims, mode="circular")
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    with torch.set_grad_enabled(grad):
        assert torch.equal(conv(x), convolve(padded, conv.weight, conv.bias))


def test_no_gradient_reaches_the_zeros() -> None:
    conv = masked()
    conv(torch.randn(2, 3, 5, 4)).square().sum().backward()
    assert not conv.weight.grad[~MASK].any()
    assert bool(conv.weight.grad[MASK].abs().amin() > 0)


@pytest.mark.parametrize("grad", [False, True])
def test_a_mask_of_numbers_multiplies_in_every_mode(grad: bool) -> None:
    entries = MASK.int() * 3
    conv = masked(mask=entries)
    x = torch.randn(2, 3, 5, 4)
    weight = conv.weight * entries[:, :, None, None]
    with torch.set_grad_enabled(grad):
        assert torch.equal(conv(x), F.conv2d(F.pad(x, [1] * 4, mode="circular"), weight, conv.bias))


def test_the_mask_is_structure() -> None:
    conv = masked()
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert "67% of the weight" in repr(conv)
    emptied = copy.deepcopy(conv).to_empty(device="cpu")
    assert torch.equal(emptied.mask, MASK)
    assert torch.equal(conv.half().mask, MASK)


@pytest.mark.parametrize("shape", [(2, 7), (0, 7, 3), (2, 7, 3, 4), (1, 7, 3, 4, 2)])
def test_constant_channels_have_batch_and_size_of_what_they_are_like(
    shape: tuple[int, ...],
) -> None:
    bias = nn.Parameter(torch.tensor([2.0, -3.0, 5.0]))
    y = ConstantChannels(bias)(torch.randn(shape))
    assert y.shape == (shape[0], 3, *shape[2:])
    assert all(bool((y[:, channel] == bias[channel]).all()) for channel in range(3))


def test_constant_channels_pass_gradients_and_take_the_dtype() -> None:
    constants = ConstantChannels(nn.Parameter(torch.tensor([2.0, -3.0])))
    constants(torch.randn(5, 1, 7)).sum().backward()
    assert constants.bias.grad.tolist() == [35, 35]
    assert constants(torch.randn(1, 1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_zeros_are_no_state_and_stay_zeros() -> None:
    constants = ConstantChannels(torch.zeros(4))
    assert not constants.state_dict()
    assert not list(constants.parameters())
    assert not constants.to_empty(device="cpu").double()(torch.ones(1, 1, 3)).any()


def test_a_transpose_is_that_of_the_channels() -> None:
    x = torch.randn(2, 30, 3, 4)
    found = ChannelTranspose((2, 3, 5), (2, 0, 1))(x)
    expected = [x[:, (a * 3 + b) * 5 + c] for c in range(5) for a in range(2) for b in range(3)]
    assert torch.equal(found, torch.stack(expected, 1))


def test_a_transpose_refuses_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="no order of the axes"):
        ChannelTranspose((2, 3), (0, 0))
    with pytest.raises(UsageError, match=r"takes 6 channels, and its input \[1, 7, 2\] has 7"):
        ChannelTranspose((2, 3), (1, 0))(torch.ones(1, 7, 2))
