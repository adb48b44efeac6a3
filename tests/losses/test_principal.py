"""Principal directions restore features: wholly at full width, and better the wider they are."""

import pytest
import torch
from torch import Tensor

from mipkd.losses._principal import PrincipalDirections, choose_width, relative_error


def features(channels: int = 24, rank: int = 24, seed: int = 0) -> Tensor:
    """Features (4, C, 6, 5) around a mean, of `rank` directions whose energy falls."""
    chance = torch.Generator().manual_seed(seed)
    energy_R = 2.0 ** -torch.arange(rank)
    codes_NRHW = torch.randn(4, rank, 6, 5, generator=chance) * energy_R[:, None, None]
    basis_CR = torch.randn(channels, rank, generator=chance)
    mean_C = torch.randn(channels, generator=chance)
    return torch.einsum("nrhw,cr->nchw", codes_NRHW, basis_CR) + mean_C[:, None, None]


def test_full_width_restores_exactly() -> None:
    truth = features()
    found = PrincipalDirections.fit(truth, 24)
    assert found.encode(truth).shape == (4, 24, 6, 5)
    torch.testing.assert_close(found.decode(found.encode(truth)), truth, atol=1e-5, rtol=1e-5)


def test_the_error_falls_with_the_width_and_no_other_basis_has_a_smaller_one() -> None:
    truth = features()
    errors = [relative_error(PrincipalDirections.fit(truth, width), truth) for width in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)

    found = PrincipalDirections.fit(truth, 4)
    other = torch.linalg.qr(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)))[0]
    squares = [
        (one.decode(one.encode(truth)) - truth).square().sum()
        for one in (found, PrincipalDirections(found.mean_C, other))
    ]
    assert squares[0] < squares[1]


def test_directions_are_orthonormal_the_strongest_first_and_of_fixed_sign() -> None:
    found = PrincipalDirections.fit(features(), 6)
    torch.testing.assert_close(found.directions_CL.T @ found.directions_CL, torch.eye(6))
    variances = found.encode(features()).var((0, 2, 3))
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    largest = found.directions_CL.gather(0, found.directions_CL.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_fewer_directions_are_the_first_of_more() -> None:
    truth = features()
    wide, narrow = (PrincipalDirections.fit(truth, width) for width in (8, 3))
    assert torch.equal(wide.narrow(3).directions_CL, narrow.directions_CL)


@pytest.mark.parametrize(("rank", "width"), [(4, 8), (12, 16)])
def test_the_smallest_width_that_restores_every_position_is_chosen(rank: int, width: int) -> None:
    flat = features(rank=rank) * torch.linspace(1, 2, 24)[:, None, None]
    other = torch.randn(4, rank, 6, 5, generator=torch.Generator().manual_seed(2))
    basis = torch.linalg.qr(torch.randn(24, rank, generator=torch.Generator().manual_seed(3)))[0]
    even = torch.einsum("nrhw,cr->nchw", other, basis)  # all directions of one energy
    found = choose_width([flat, even], error=0.1)
    assert found == width
    errors = [relative_error(PrincipalDirections.fit(f, found), f) for f in (flat, even)]
    assert max(errors) <= 0.1
    if found > 8:
        assert relative_error(PrincipalDirections.fit(even, found - 8), even) > 0.1


def test_the_widest_is_taken_where_none_restores_enough() -> None:
    noise = torch.randn(4, 30, 6, 5, generator=torch.Generator().manual_seed(0))
    assert choose_width([noise], error=0.0) == 30
    assert choose_width([noise], at_most=20, error=0.0) == 20
