"""What brings the stages of two families together: against naive loops, for all sides, of published sizes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tutelage.methods.alignment import Embedding, Expansion, Join, Respell, Spread, StageAligner
from tutelage.methods.pairs import partners
from tutelage.methods.projectors import Form, MapAligner, Patches, TokenAligner


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def aligned(
    student: Form, teacher: Form, **settings: bool
) -> tuple[StageAligner, Tensor, Tensor, Tensor, Tensor]:
    """An aligner, the two stages it got, and what it made of them."""
    torch.manual_seed(0)
    aligner = StageAligner(student, teacher, **settings).double()
    ours, theirs = normal(2, *student.shape), normal(2, *teacher.shape, seed=1)
    return aligner, ours, theirs, *aligner(ours, theirs)


def test_a_map_goes_to_a_map_through_a_1x1_convolution_without_bias():
    aligner, ours, theirs, got, target = aligned(Form(3, 4, 4), Form(5, 4, 4))
    (weight,) = aligner.parameters()
    torch.testing.assert_close(got, torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], ours))
    assert torch.equal(target, theirs)


def test_patches_of_a_map_become_tokens():
    aligner, ours, theirs, got, target = aligned(Form(3, 8, 8), Form(5, 4, 4, tokens=True))
    weight, bias = aligner.parameters()
    assert weight.shape == (5, 3, 2, 2)
    for row, column in product(range(4), repeat=2):
        patch = ours[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = (weight * patch[:, None]).sum((2, 3, 4)) + bias
        torch.testing.assert_close(got[:, :, row, column], expected)
    assert torch.equal(target, theirs)


def test_a_small_map_goes_to_the_teachers_tokens_laid_side_by_side():
    aligner, ours, theirs, got, target = aligned(Form(3, 2, 2), Form(5, 4, 4, tokens=True))
    weight, bias = aligner.parameters()
    torch.testing.assert_close(
        got, torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], ours) + bias[:, None, None]
    )
    for row, column in product(range(2), repeat=2):
        neighbours = [theirs[:, :, 2 * row + i, 2 * column + j] for i, j in product(range(2), repeat=2)]
        assert torch.equal(target[:, :, row, column], torch.cat(neighbours, dim=1))


@pytest.mark.parametrize("tokens", [False, True])
def test_a_token_grows_into_the_positions_that_it_stands_for(tokens):
    aligner, ours, theirs, got, target = aligned(Form(3, 2, 2, tokens=True), Form(5, 4, 4, tokens))
    weight, bias = aligner.parameters()
    assert weight.shape == (4 * 5, 3)
    for row, column in product(range(4), repeat=2):
        part = 5 * (2 * (row % 2) + column % 2)
        rows = slice(part, part + 5)
        expected = ours[:, :, row // 2, column // 2] @ weight[rows].t() + bias[rows]
        torch.testing.assert_close(got[:, :, row, column], expected)
    assert torch.equal(target, theirs)


def test_the_published_growth_lays_what_becomes_of_a_token_along_the_rows():
    aligner, ours, _, got, _ = aligned(Form(3, 2, 2, tokens=True), Form(5, 4, 4, tokens=True), scrambled=True)
    weight, bias = aligner.parameters()
    tokens = ours.flatten(2).transpose(1, 2) @ weight.t() + bias
    expected = tokens.reshape(2, 16, 5).transpose(1, 2).reshape(2, 5, 4, 4)
    torch.testing.assert_close(got, expected)
    _, _, _, correct, _ = aligned(Form(3, 2, 2, tokens=True), Form(5, 4, 4, tokens=True))
    torch.testing.assert_close(got.flatten(2).sum(2), correct.flatten(2).sum(2))
    assert not torch.allclose(got, correct)
    to_a_map = aligned(Form(3, 2, 2, tokens=True), Form(5, 4, 4), scrambled=True)[3]
    torch.testing.assert_close(to_a_map, correct)


@pytest.mark.parametrize("tokens", [False, True])
def test_neighbouring_tokens_are_laid_side_by_side_where_there_are_too_many(tokens):
    aligner, ours, theirs, got, target = aligned(Form(3, 4, 4, tokens=True), Form(5, 2, 2, tokens))
    weight, bias = aligner.parameters()
    assert weight.ndim == (2 if tokens else 4) and weight.shape[:2] == (5, 12)
    for row, column in product(range(2), repeat=2):
        neighbours = [ours[:, :, 2 * row + i, 2 * column + j] for i, j in product(range(2), repeat=2)]
        expected = torch.cat(neighbours, dim=1) @ weight.view(5, 12).t() + bias
        torch.testing.assert_close(got[:, :, row, column], expected)
    assert torch.equal(target, theirs)


SIDES = [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (4, 2), (8, 3)]


@pytest.mark.parametrize(("ours", "theirs"), list(product((False, True), repeat=2)))
def test_sides_of_all_kinds_are_aligned(ours, theirs):
    for student_sides, teacher_sides, scrambled in product(SIDES, SIDES, (False, True)):
        student, teacher = Form(3, *student_sides, tokens=ours), Form(5, *teacher_sides, tokens=theirs)
        got, target = StageAligner(student, teacher, scrambled)(
            torch.randn(2, *student.shape), torch.randn(2, *teacher.shape)
        )
        assert got.shape == target.shape
        assert target.shape[1:] == teacher.shape or target.shape[2:] == student.sides


def test_spreading_undoes_joining():
    features = normal(2, 3, 4, 6)
    joined = Join((2, 3))(features)
    assert joined.shape == (2, 18, 2, 2) and torch.equal(Spread((2, 3))(joined), features)
    assert torch.equal(Respell((4, 6))(features), features)


def test_layers_start_as_the_published_ones():
    torch.manual_seed(0)
    linear = StageAligner(Form(64, 2, 2, True), Form(64, 4, 4, True)).align[0]
    assert 0.018 < float(linear.weight.detach().std()) < 0.022 and not linear.bias.any()
    patches = StageAligner(Form(64, 4, 4), Form(64, 2, 2, True)).align[1]
    assert float(patches.weight.detach().std()) == pytest.approx((2 / (64 * 4)) ** 0.5, rel=0.05)


RESNET18 = [Form(64, 56, 56), Form(128, 28, 28), Form(256, 14, 14), Form(512, 7, 7)]
MOBILENETV2 = [Form(24, 56, 56), Form(32, 28, 28), Form(96, 14, 14), Form(1280, 7, 7)]
CONVNEXT_T = [Form(96, 56, 56), Form(192, 28, 28), Form(384, 14, 14), Form(768, 7, 7)]
SWIN_T = [form._replace(tokens=True) for form in CONVNEXT_T]
SWIN_P = [form._replace(channels=form.channels // 2) for form in SWIN_T]
MIXER = [Form(768, 14, 14, tokens=True)] * 4
DEIT_T = [Form(192, 14, 14, tokens=True)] * 4
RESMLP = [Form(384, 14, 14, tokens=True)] * 4


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (SWIN_T, RESNET18, 523_680),
        (MIXER, RESNET18, 2_954_496),
        (SWIN_T, MOBILENETV2, 1_029_792),
        (CONVNEXT_T, DEIT_T, 1_109_376),
        (CONVNEXT_T, SWIN_P, 393_120),
        (MIXER, SWIN_P, 2_217_216),
        (CONVNEXT_T, RESMLP, 2_215_296),
        (SWIN_T, RESMLP, 2_215_296),
        (RESNET18, RESNET18, 348_160),
    ],
)
@pytest.mark.parametrize("scrambled", [False, True])
def test_aligners_of_published_pairs_have_the_published_size(teacher, student, expected, scrambled):
    with torch.device("meta"):
        aligners = nn.ModuleList(
            StageAligner(*pair, scrambled) for pair in zip(student, teacher, strict=True)
        )
    assert sum(parameter.numel() for parameter in aligners.parameters()) == expected


@pytest.mark.parametrize("tokens", [False, True])
def test_an_embedding_leads_to_one_shape_and_an_expansion_back(tokens):
    for sides in SIDES:
        form, stage = Form(3, *sides, tokens), torch.randn(2, 3, *sides)
        embedding = Embedding(form, 4, 6)
        assert isinstance(embedding.project, TokenAligner if tokens else Patches)
        tokens_of_stage = embedding(stage)
        assert tokens_of_stage.shape == (2, 16, 6)
        for from_map in (False, True):
            decoded = tokens_of_stage.transpose(1, 2).unflatten(2, (4, 4)) if from_map else tokens_of_stage
            assert Expansion(form, 4, 6, from_map)(decoded).shape == stage.shape


def test_expansions_are_the_projectors_of_pat():
    kinds = {
        (True, True): Patches,
        (True, False): TokenAligner,
        (False, True): MapAligner,
        (False, False): MapAligner,
    }
    for (tokens, from_map), kind in kinds.items():
        assert isinstance(Expansion(Form(3, 2, 2, tokens), 4, 6, from_map).project, kind)
    torch.manual_seed(0)
    form = Form(3, 2, 2)
    one, other = Expansion(form, 4, 6, from_map=True).eval(), Expansion(form, 4, 6, from_map=False).eval()
    other.load_state_dict(one.state_dict())
    decoded = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(one(decoded), other(decoded.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (3, 4, [(0, 1), (1, 2), (2, 3)]),
        (4, 3, [(1, 0), (2, 1), (3, 2)]),
        (2, 4, [(0, 1), (1, 3)]),
        (5, 2, [(2, 0), (4, 1)]),
        (1, 4, [(0, 3)]),
    ],
)
def test_stages_pair_by_their_share_of_the_depth(student, teacher, expected):
    assert partners(student, teacher) == expected
