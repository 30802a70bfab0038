"""Probabilistic knowledge transfer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import pkt_loss
from tutelage.methods.base import Clock, Config, Method, Needs, Outs
from tutelage.methods.pairs import POOLED, pooled_pair
from tutelage.methods.registry import register_method


class PKTConfig(Config):
    """Defaults of RepDistiller's ``pkt`` rows."""

    pkt_weight: float = Field(30000.0, ge=0, description="Weight of the mean over all pairs (beta).")


@register_method(
    "pkt",
    summary="match whom each sample of the batch resembles",
    source="Passalis and Tefas 2018, arXiv 1803.10837",
)
class PKT(Method):
    """L = w_ce CE + w_pkt 1/B^2 sum_ij p_ij log(p_ij / q_ij), p and q the samples' cosine affinities.

    On the pooled features, see `pkt_loss`. The mean runs over all pairs as in RepDistiller, so with the
    weight unchanged a batch twice as large gives half the loss; the paper sums.
    """

    Config: ClassVar[type[Config]] = PKTConfig

    @property
    def needs(self) -> Needs:
        """Pooled features of both networks."""
        return POOLED

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        term = pkt_loss(*pooled_pair(outs))
        return {"ce": self.supervised(batch, outs.student), "pkt": self.config.pkt_weight * term}
