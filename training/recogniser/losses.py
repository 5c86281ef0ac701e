"""What training minimises: CTC of all outputs, their agreement between two views of a clip, and at first a guess."""

import torch
from torch import Tensor
from torch.nn import functional

from training.recogniser.bank import Batch

INNER_SHARE = 0.5
"""Of the loss, shared by the inner outputs: they see that the lower blocks learn at once."""


def mixed_loss(said: list[Tensor], batch: Batch) -> Tensor:
    """CTC over units, in float32, in nats a unit: half from the last output, half from the inner ones."""
    many = len(said)
    # All outputs at once: the recursion over frames is as long for one as for three.
    losses = functional.ctc_loss(
        torch.cat(said).transpose(0, 1), batch.units.repeat(many, 1), batch.frame_counts.repeat(many),
        batch.unit_counts.repeat(many), reduction="none", zero_infinity=True,
    )  # fmt: skip
    return _shared(losses.view(many, -1).sum(1) / batch.unit_counts.sum())


def agreement(said: list[Tensor], batch: Batch, views: int) -> Tensor:
    """How far the views of a clip are from each other, in nats a unit: the divergence of each from its neighbour, which
    is not moved (consistency-regularised CTC, Yao et al. 2024, arXiv:2410.05101)."""
    counts = batch.frame_counts.to(said[0].device)
    counted = torch.arange(said[0].shape[1], device=counts.device) < counts[:, None]
    losses = []
    for one in said:
        other = one.detach().roll(len(one) // views, 0)
        divergence = (other.exp() * (other - one)).sum(-1)
        losses.append((divergence * counted).sum() / batch.unit_counts.sum())
    return _shared(torch.stack(losses))


def _shared(losses: Tensor) -> Tensor:
    return (1 - INNER_SHARE) * losses[-1] + INNER_SHARE * losses[:-1].mean()


def guided_loss(said: list[Tensor], batch: Batch) -> Tensor:
    """Cross-entropy of each unit where it would be said if speech ran evenly, and a frame later, in all outputs.

    CTC alone first learns that the blank is always likely and stays there for long. A rough guess at the places, for
    the first steps, shows the way; CTC then finds the true ones.
    """
    longest = batch.units.shape[1]
    counted = torch.arange(longest, device=batch.units.device) < batch.unit_counts.to(batch.units.device)[:, None]
    losses = []
    for one in said:
        for later in (1, 2):
            places = (batch.places + later).clamp_max(one.shape[1] - 1)
            there = one.gather(1, places[:, :, None].expand(-1, -1, one.shape[2]))
            losses.append(-(there.gather(2, batch.units[:, :, None])[:, :, 0] * counted).sum() / counted.sum())
    return torch.stack(losses).mean()
