"""Distillation losses as pure functions on tensors, for any training loop.

Every function of two networks takes ``(student, teacher, ...)`` in this order, returns a scalar (or named
scalars) in the dtype it was given, and is differentiable in the student and the teacher alike: hand over a
detached teacher to keep its graph out (``ced_loss`` keeps some back itself). Nothing here synchronises with
the host (but for the decomposition in ``kdsvd_losses``, a library call), and each compiles with
``fullgraph=True``. Give float32 or wider; under autocast the caller casts first.
"""

from tutelage.losses.attended import attended_loss, cka_loss
from tutelage.losses.boundaries import boundary_loss
from tutelage.losses.contrast import contrast_loss, log_normaliser
from tutelage.losses.dpcd import ced_loss, ced_terms
from tutelage.losses.factors import factor_loss
from tutelage.losses.features import attention_loss, attention_map, hcl_loss, hint_loss, nst_loss, vid_loss
from tutelage.losses.flows import flow_loss, flow_matrix
from tutelage.losses.logits import (
    binary_cross_entropy,
    bkd_loss,
    cross_entropy,
    dist_loss,
    dist_terms,
    dkd_loss,
    dkd_terms,
    kd_loss,
)
from tutelage.losses.ofa import ofa_loss
from tutelage.losses.packd import packd_loss
from tutelage.losses.relations import (
    congruence_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
)
from tutelage.losses.singular import kdsvd_losses

__all__ = [
    "attended_loss",
    "attention_loss",
    "attention_map",
    "binary_cross_entropy",
    "bkd_loss",
    "boundary_loss",
    "ced_loss",
    "ced_terms",
    "cka_loss",
    "congruence_loss",
    "contrast_loss",
    "cross_entropy",
    "dist_loss",
    "dist_terms",
    "dkd_loss",
    "dkd_terms",
    "factor_loss",
    "flow_loss",
    "flow_matrix",
    "hcl_loss",
    "hint_loss",
    "kd_loss",
    "kdsvd_losses",
    "log_normaliser",
    "nst_loss",
    "ofa_loss",
    "packd_loss",
    "pkt_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "similarity_loss",
    "vid_loss",
]
