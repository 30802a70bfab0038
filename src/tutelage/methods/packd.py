"""PACKD: positive-pair aware contrastive distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.class_table import ClassTable
from tutelage.data.negatives import check_negatives
from tutelage.data.partners import beneath, draw_partners, draw_shares, draw_turns, mixed, quarter_turned
from tutelage.errors import UserError
from tutelage.losses import cross_entropy, kd_loss, packd_loss
from tutelage.methods.base import (
    MAIN_PHASE,
    Clock,
    Config,
    DataSpec,
    Method,
    Needs,
    Networks,
    Outs,
    Phase,
    teacher_of,
)
from tutelage.methods.memory import EmbeddingHead, Held
from tutelage.methods.packd_memory import BankMemory, FirstNegative, QueueMemory
from tutelage.methods.pairs import POOLED, pooled_pair, pooled_widths
from tutelage.methods.registry import register_method

HEAD_SCALE = 16.0

HEAD_SETTINGS = (
    "embedding_dim",
    "head_weight",
    "head_epochs",
    "head_lr",
    "mixes",
    "mix",
    "turn",
    "fresh_anchor",
    "smallest_share",
)
"""Settings that the trained teacher head depends on."""


class PACKDConfig(Config):
    """Defaults of PACKD's CIFAR script; names in brackets are its flags.

    ImageNet: ``memory`` queue, ``mixes`` 1, ``smallest_share`` 0.1, ``fresh_anchor`` false, ``temperature``
    3. The paper: ``plain_ce``, ``first_negative`` none, ``sum_mixes`` with ``mix_kd_weight`` 2,
    ``transport_cost`` cosine with ``transport_epsilon`` 1e-7; its head's contrast has no setting.
    """

    plain_ce: bool = Field(
        False, description="Compare labels with plain views alone, as in the paper, instead of all views."
    )
    kd_weight: float = Field(1.0, ge=0, description="Weight of KD on the plain views (alpha).")
    mix_kd_weight: float = Field(1.0, ge=0, description="Weight of KD on the mixes (alpha_aug).")
    contrast_weight: float = Field(
        0.8, ge=0, description="Weight of the contrast (beta); 0 leaves it and its two first stages out."
    )
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T of KD (kd_T).")
    contrast_temperature: float = Field(0.07, gt=0, description="Temperature tau of the similarities.")
    mixes: int = Field(
        3,
        ge=-1,
        description="Positives made for each image beside its plain view (mixup_num); -1 shows one in its "
        "place.",
    )
    mix: bool = Field(
        True, description="Mix partners with the anchor; else they are the positives themselves."
    )
    turn: bool = Field(
        True, description="Turn partners by a random multiple of 90 degrees (mixup_rotate > 0)."
    )
    smallest_share: float = Field(
        0.0, ge=0, le=1, description="Smallest share of the anchor in a mix (mixup_ratio); the largest is 1."
    )
    fresh_anchor: bool = Field(
        True, description="Crop and flip the anchor afresh for every mix; else mixes share its plain view."
    )
    sum_mixes: bool = Field(
        False, description="Add KD up over an image's mixes, as in the paper, instead of averaging it."
    )
    embedding_dim: int = Field(
        128, ge=1, description="Width of the embeddings (feat_dim); with a queue the teacher's own width."
    )
    memory: Literal["bank", "queue"] = Field(
        "bank",
        description="Where negatives come from: one embedding of each image by a head trained first (CIFAR), "
        "or the teacher's last features (ImageNet).",
    )
    negatives: int = Field(
        16384, ge=1, description="K, negatives of an anchor or, in a queue, a view (nce_k)."
    )
    first_negative: FirstNegative = Field(
        "own",
        description="A negative more, from the bank: the anchor's own row (mode exact), a row of its class "
        "(relax), or none, as in the paper.",
    )
    momentum: float = Field(
        0.5, ge=0, le=1, description="Share of the old embedding in the bank after the first epoch (nce_m)."
    )
    queue_size: int = Field(
        24960, ge=1, description="Embeddings in the queue; the ImageNet script holds 195 batches of 128."
    )
    gather_queue: bool = Field(
        False,
        description="With several processes: fill every queue with the features of all of them; else each "
        "keeps its own, as in the ImageNet script.",
    )
    head_weight: float = Field(1.0, ge=0, description="Weight of the cross entropy that trains the head.")
    head_epochs: int = Field(60, ge=1, description="Epochs of the teacher head's training (t_epoch).")
    head_lr: float = Field(0.05, gt=0, description="Its constant learning rate (t_lr).")
    fill_epochs: int = Field(
        1, ge=0, description="Forward-only epochs that fill the bank before the student's training."
    )
    transport_cost: Literal["distance", "cosine"] = Field(
        "distance", description="Cost of a pair: the code's 2 - 2 cos, or the paper's 1 - cos / tau."
    )
    transport_epsilon: float = Field(0.1, gt=0, description="Weight of the plan's entropy (ops_eps).")
    transport_threshold: float = Field(
        0.1, ge=0, description="Movement that ends the Sinkhorn rounds (ops_err_thres); 0 makes them all."
    )
    transport_rounds: int = Field(
        10,
        ge=1,
        description="Most Sinkhorn rounds. The script allows 100 and makes 1 to 3; all are computed here. To "
        "converge set 100 and the threshold to 0.",
    )


class TeacherHead(nn.Module):
    """Two layers on the teacher's pooled features, and the classifier that they are trained through.

    The state dict's keys are those of PACKD's wrapper (``models/wrapper.py``) without its backbone.

    Args:
        features: Width of the teacher's pooled features.
        width: D, width of the embedding.
        num_classes: C.
    """

    def __init__(self, features: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.proj_head = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, features]` to embeddings `[B, D]` of length 16."""
        return HEAD_SCALE * F.normalize(self.proj_head(features), dim=1)


@register_method(
    "packd",
    summary="contrast mixes of same-class images, paired by optimal transport, with a memory of the teacher",
    source="Yu et al. 2022, doi 10.1145/3503161.3548256",
)
class PACKD(Method):
    """L = w_ce CE + w_kd KD(plain views) + w_mix KD(mixes) + w_c C, CE on all views, C the `packd_loss`.

    Every image is shown plain and in mixes with turned images of its class. Three stages, as in
    ``train_student.py``: a head on the frozen teacher learns to classify all views; an epoch without updates
    fills the bank with the head's embeddings of the plain views; then the student learns. A batch enters the
    bank before it is scored: in the first epoch as it is, later by moving the old rows.

    With a queue (``train_student_imagenet.py``) there is the last stage alone, the teacher's embedding is its
    normalised feature, and one KD term compares all views.

    Deviations from the code: the momentum is 0 the first time that an image comes, whatever the steps of an
    epoch, where the code counts 782 steps; negatives are drawn with replacement, see `draw_negatives`; images
    are turned after crop and flip, which for square ones gives the same distribution; Sinkhorn makes at most
    ``transport_rounds`` rounds; without mixes there is no KD on them, where the code gives NaN. The paper's
    head is trained by contrast.
    """

    Config: ClassVar[type[Config]] = PACKDConfig
    labels: Tensor

    def __init__(self, config: PACKDConfig) -> None:
        super().__init__(config)
        self.shown = max(1, config.mixes + 1)

    @property
    def needs(self) -> Needs:
        """Pooled features of both networks, and M views of each image, which shows one class."""
        queue = self.config.memory == "queue"
        return Needs(POOLED.student, POOLED.teacher, views=self.shown, mixes=False, repeats=queue)

    @property
    def contrasts(self) -> bool:
        """Whether there is a contrastive term at all."""
        return bool(self.config.contrast_weight > 0)

    @property
    def has_head(self) -> bool:
        """Whether the teacher gets a trained head."""
        return self.contrasts and self.config.memory == "bank"

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build heads and memory, and what partners are drawn by.

        Raises:
            UserError: All images are of one class, or images to turn are not square.
        """
        config = self.config
        height, width = data.image_shape[-2:]
        if config.turn and config.mixes and height != width:
            raise UserError(
                f"images of {height} x {width} pixels change shape when turned; set method.turn=false"
            )
        self.data = data
        self.know(data.labels, data.num_classes)
        if self.contrasts:
            check_negatives(self.table.parts)
            self.build_contrast(*pooled_widths(nets, data))

    def know(self, labels: Tensor, num_classes: int) -> None:
        """Remember the classes of the training rows: labels `[N]` int64."""
        self.register_buffer("labels", labels, persistent=False)
        self.table = Held(ClassTable.of(labels, num_classes))

    def build_contrast(self, student: int, teacher: int) -> None:
        """Heads and memory for pooled features of the given widths."""
        config, table = self.config, self.table.parts
        num_classes = len(table.sizes)
        width = config.embedding_dim if self.has_head else teacher
        if self.has_head:
            # Its first weights follow from the seed alone, so that runs that differ in the student share it.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(torch.initial_seed())
                self.head = TeacherHead(teacher, width, num_classes)
        self.embed_s = EmbeddingHead(student, width)
        self.memory: BankMemory | QueueMemory
        if config.memory == "bank":
            self.memory = BankMemory(table, width, config.negatives, config.first_negative, config.momentum)
        else:
            self.memory = QueueMemory(config.queue_size, width, config.negatives, num_classes)

    def phases(self) -> tuple[Phase, ...]:
        """Teacher head, filling of the bank and distillation; with a queue the last alone."""
        config, main = self.config, Phase(MAIN_PHASE)
        if not self.has_head:
            return (main,)
        head = Phase(
            "teacher head",
            config.head_epochs,
            "classify",
            trains="method",
            lr=config.head_lr,
            part="head",
            settings=HEAD_SETTINGS,
        )
        fill = Phase("fill the memory", config.fill_epochs, update=False)
        return (head, fill, main) if config.fill_epochs else (head, main)

    # -- views --------------------------------------------------------------------------------------

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The mixes beneath each image, and one row of negatives an image (with a queue, a view)."""
        labels = self.labels[batch.index]
        drawn = None
        if self.contrasts:
            entering = self.remembered(labels) if self.training else labels[:0]
            drawn = self.memory.draw(batch.index, labels, self.shown, generator, entering)
        return self.with_mixes(batch, labels, generator)._replace(negatives=drawn)

    def with_mixes(self, batch: Batch, labels: Tensor, generator: torch.Generator) -> Batch:
        """Make the positives: `[B]` samples to `[B M]`, sample-major."""
        config = self.config
        if not config.mixes:
            return batch
        each = abs(config.mixes)
        partners = draw_partners(labels, self.table.parts, each, generator).flatten()
        view = torch.randint(
            self.data.view_count, (2, len(partners)), generator=generator, device=generator.device
        )
        others = self.data.take(partners, view[0]).images
        if config.turn:
            others = quarter_turned(others, draw_turns(len(partners), generator))
        if config.mix:
            if config.fresh_anchor:
                anchors = self.data.take(batch.index.repeat_interleave(each), view[1]).images
            else:
                anchors = batch.images.repeat_interleave(each, dim=0)
            others = mixed(anchors, others, draw_shares(len(partners), config.smallest_share, generator))
        rows = self.shown
        return Batch(
            others if config.mixes < 0 else beneath(batch.images, others),
            batch.targets.repeat_interleave(rows, dim=0),
            batch.index.repeat_interleave(rows),
            batch.view.repeat_interleave(rows),
        )

    # -- objectives ---------------------------------------------------------------------------------

    def classify(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """The first stage: cross entropy of the head's classifier on all views."""
        features = teacher_of(outs).pooled
        assert features is not None
        scores = self.head.classifier(self.head(features))
        return {"head": self.config.head_weight * cross_entropy(scores, batch.targets)}

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class; the filling stage is the same without an update."""
        of = slice(None, None, self.shown if self.config.plain_ce else 1)
        ce = self.config.ce_weight * self.label_loss(outs.student.logits[of], batch.targets[of])
        terms = {"ce": ce, **self.distilled(outs.student.logits, teacher_of(outs).logits)}
        if self.contrasts:
            terms["contrast"] = self.config.contrast_weight * self.contrast(batch, outs)
        return terms

    def distilled(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """KD on plain views and on mixes apart, or with a queue on all together; logits `[B M, C]`."""
        config, views = self.config, self.shown
        if config.memory == "queue" or views == 1:
            return {"kd": config.kd_weight * kd_loss(student, teacher, config.temperature)}
        plain, mixes = (
            kd_loss(own.flatten(0, 1), other.flatten(0, 1), config.temperature)
            for own, other in zip(_split(student, views), _split(teacher, views), strict=True)
        )
        scale = views - 1 if config.sum_mixes else 1
        return {"kd": config.kd_weight * plain, "mix_kd": config.mix_kd_weight * scale * mixes}

    def contrast(self, batch: Batch, outs: Outs) -> Tensor:
        """The contrastive loss of a batch, a scalar; in training it enters the memory before it is scored."""
        config, views = self.config, self.shown
        student, teacher = pooled_pair(outs)
        embedded = self.embed_s(student).unflatten(0, (-1, views))
        guides = self.teacher_embeddings(teacher).unflatten(0, (-1, views))
        index = batch.index[::views]
        labels = self.labels[index]
        if self.training:
            self.memory.take_in(*map(self.remembered, (index, labels, guides[:, 0])))
        assert batch.negatives is not None
        return packd_loss(
            embedded,
            guides,
            self.memory.similarities(embedded, labels, batch.negatives),
            config.contrast_temperature,
            config.transport_epsilon,
            config.transport_threshold,
            config.transport_rounds,
            config.transport_cost == "cosine",
        )

    def remembered(self, rows: Tensor) -> Tensor:
        """What of a batch's `[B, ...]` enters the memory: every process's, but for queues of their own."""
        apart = self.config.memory == "queue" and not self.config.gather_queue
        return rows if apart else self.everyones(rows)

    @torch.no_grad()
    def teacher_embeddings(self, features: Tensor) -> Tensor:
        """Embeddings `[B M, D]` of length 1 from the teacher's pooled features."""
        return F.normalize(self.head(features) if self.has_head else features, dim=1)


def _split(logits: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Logits `[B M, C]` as those of the plain views `[B, 1, C]` and of the mixes `[B, M - 1, C]`."""
    apart = logits.unflatten(0, (-1, views))
    return apart[:, :1], apart[:, 1:]
