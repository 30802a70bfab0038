"""Correlation congruence."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import congruence_loss
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs
from tutelage.methods.pairs import POOLED, pooled_pair, pooled_widths
from tutelage.methods.registry import register_method


class CCConfig(Config):
    """Defaults of RepDistiller's ``correlation`` rows; OFAKD and PAT have the same."""

    cc_weight: float = Field(0.02, ge=0, description="Weight of the congruence term (beta).")
    embedding_dim: int = Field(128, ge=1, description="Width that both pooled features are embedded in.")


@register_method(
    "cc",
    summary="correlate the differences of neighbours in the batch",
    source="Peng et al. 2019, arXiv 1904.01802",
)
class CC(Method):
    """L = w_ce CE + w_cc mean_i <d_i, d_(i+1)>, d_i = |E_s f_s - E_t f_t| of sample i, E linear with bias.

    Both embeddings are trained, the teacher's too. This is what RepDistiller, OFAKD and PAT compute; the
    paper compares the correlations of all pairs under a Gaussian kernel.
    """

    Config: ClassVar[type[Config]] = CCConfig

    @property
    def needs(self) -> Needs:
        """Pooled features of both networks."""
        return POOLED

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build the embeddings."""
        student, teacher = pooled_widths(nets, data)
        self.embed_s = nn.Linear(student, self.config.embedding_dim)
        self.embed_t = nn.Linear(teacher, self.config.embedding_dim)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        student, teacher = pooled_pair(outs)
        term = congruence_loss(self.embed_s(student), self.embed_t(teacher))
        return {"ce": self.supervised(batch, outs.student), "cc": self.config.cc_weight * term}
