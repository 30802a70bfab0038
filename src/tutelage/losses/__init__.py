"""Distillation losses as pure functions on tensors, for any training loop.

Every function takes ``(student, teacher, ...)`` in this order, returns a scalar (or named scalars) in the
dtype it was given, and is differentiable in the student and the teacher alike: hand over a detached teacher
to keep its graph out (``ced_loss`` keeps some back itself). Nothing here synchronises with the host, so each
compiles with ``fullgraph=True``. Give float32 or wider; under autocast the caller casts first.
"""

from tutelage.losses.dpcd import ced_loss, ced_terms
from tutelage.losses.features import attention_loss, attention_map, hint_loss
from tutelage.losses.logits import cross_entropy, dist_loss, dist_terms, dkd_loss, dkd_terms, kd_loss
from tutelage.losses.relations import rkd_angle_loss, rkd_distance_loss, rkd_loss, similarity_loss

__all__ = [
    "attention_loss",
    "attention_map",
    "ced_loss",
    "ced_terms",
    "cross_entropy",
    "dist_loss",
    "dist_terms",
    "dkd_loss",
    "dkd_terms",
    "hint_loss",
    "kd_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "similarity_loss",
]
