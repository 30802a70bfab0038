"""OFA-KD between networks of any families: its branches, its terms, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toys import toy_batch, toy_clock, toy_data, toy_network, toy_step
from tutelage.errors import UserError
from tutelage.losses import ofa_loss
from tutelage.methods import Networks, create_method, method_config
from tutelage.methods.ofa import OFA, on_tokens
from tutelage.methods.ofa_branches import Merge, TokenBranch, conv_branch, count_merges
from tutelage.models.network import Ask, Network, probe
from tutelage.training.step import relative_difference

PAIRS = [
    ("resnet8_cifar", "resnet14_cifar"),
    ("resnet8_cifar", "vit"),
    ("vit", "resnet8_cifar"),
    ("mlp", "swin"),
    ("swin", "convnext"),
    ("convnext", "mlp"),
]
"""(student, teacher)."""

every_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS)


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


@every_pair
def test_student_and_branches_learn_from_any_teacher_and_nothing_else_does(student, teacher, data):
    step, nets = toy_step(create_method("ofa"), data, student=student, teacher=teacher)
    before = copy.deepcopy(nets.teacher.state_dict())
    assert len(step.method.branches) == len(nets.student.taps.stages)
    result = step(toy_batch(data), toy_clock())
    result.loss.backward()
    assert torch.isfinite(result.loss) and set(result.terms) == {"ce", "kd", "ofa"}
    unmoved = [name for name, p in step.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unmoved == []
    assert all(p.grad is None for p in nets.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in nets.teacher.state_dict().items())


@pytest.mark.parametrize(("student", "teacher"), PAIRS[2:5])
def test_the_compiled_step_gives_the_eager_gradients(student, teacher, data):
    step, _ = toy_step(create_method("ofa", eps=1.5), data, student=student, teacher=teacher)
    batch, clock, state = toy_batch(data), toy_clock(), copy.deepcopy(step.state_dict())
    found = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)):
        call(batch, clock).loss.backward()
        found.append({name: p.grad for name, p in step.named_parameters()})
        step.zero_grad(set_to_none=True)
        step.load_state_dict(state)
    assert relative_difference(found[1], found[0]) < 1e-4
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet8_cifar", False), ("convnext", False), ("vit", True), ("swin", True), ("mlp", True)],
)
def test_networks_on_tokens_are_known(name, expected):
    network = Network(toy_network(name, 5), Ask(stages=True))
    assert on_tokens(network, probe(network, 32)) is expected


def test_the_terms_are_weighted_sums_over_the_chosen_stages(data):
    settings = {"stages": (3, 1), "eps": (1.2, 1.4, 1.6), "stage_weights": (2.0, 0.5), "temperature": 2.0}
    step, nets = toy_step(create_method("ofa", kd_weight=3.0, ofa_weight=0.7, **settings), data)
    batch = toy_batch(data)
    with torch.no_grad():
        terms = step(batch, toy_clock()).terms
        student, teacher = nets.student(batch.images), nets.teacher(batch.images).logits
        third, first = step.method.branches
        branches = 2.0 * ofa_loss(third(student.stages[2]), teacher, batch.targets, 1.2, 2.0)
        branches += 0.5 * ofa_loss(first(student.stages[0]), teacher, batch.targets, 1.4, 2.0)
        logits = ofa_loss(student.logits, teacher, batch.targets, 1.6, 2.0)
    torch.testing.assert_close(terms["ofa"], 0.7 * branches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["kd"], 3.0 * logits, rtol=1e-4, atol=1e-5)


def test_the_papers_target_is_a_setting(data):
    step, nets = toy_step(create_method("ofa", target="paper", eps=1.5), data)
    batch = toy_batch(data)
    with torch.no_grad():
        got = step(batch, toy_clock()).terms["kd"]
        student, teacher = nets.student(batch.images).logits, nets.teacher(batch.images).logits
        expected = ofa_loss(student, teacher, batch.targets, 1.5, form="paper")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_wrong_settings_are_refused_in_one_sentence(data):
    with pytest.raises(UserError, match="names stage 4, but the student has 3; choose among 1 to 3"):
        toy_step(create_method("ofa", stages=(1, 4)), data)
    with pytest.raises(UserError, match=r"method\.eps has 3 numbers; give one for all, or 4"):
        toy_step(create_method("ofa", eps=(1.0, 1.1, 1.2)), data)
    with pytest.raises(UserError, match=r"method\.stage_weights has 2 numbers; give one for all, or 3"):
        toy_step(create_method("ofa", stage_weights=(1.0, 1.0)), data)
    wrong = [{"stages": (2, 2)}, {"stages": (0,)}, {"eps": -1.0}, {"eps": ()}, {"stage_weights": (1, -1)}]
    for settings in [*wrong, {"target": "both"}]:
        with pytest.raises(UserError, match=rf"^'method\.{next(iter(settings))}' can't be"):
            create_method("ofa", **settings)


def test_one_number_stands_for_a_list():
    config = method_config("ofa", {"eps": 1.5, "stages": 2})
    assert config.eps == (1.5,) and config.stages == (2,)


CNN = ((64, 56), (128, 28), (256, 14), (512, 7))
MOBILE = ((24, 56), (32, 28), (96, 14), (1280, 7))
PICO = ((48, 56), (96, 28), (192, 14), (384, 7))
NANO = ((64, 56), (128, 28), (256, 14), (512, 7))


@pytest.mark.parametrize(
    ("stages", "widths", "classes", "kind", "expected"),
    [
        (CNN, (512, 768), 100, "maps", 1_626_256),
        (CNN, (512, 384), 100, "maps", 1_194_384),
        (CNN, (512, 192), 1000, "maps", 3_041_184),
        (CNN, (512, 768), 1000, "maps", 4_394_656),
        (MOBILE, (1280, 768), 100, "maps", 2_529_296),
        (MOBILE, (1280, 768), 1000, "maps", 7_140_896),
        (((192, 14),) * 4, (192, 768), 100, "class token", 3_783_184),
        (((192, 14),) * 4, (192, 768), 1000, "class token", 4_477_984),
        (((384, 14),) * 4, (384, 768), 100, "tokens", 14_938_768),
        (((384, 14),) * 4, (384, 768), 1000, "tokens", 16_324_768),
        (PICO, (384, 768), 100, "tokens", 14_864_656),
        (NANO, (512, 2048), 1000, "tokens", 28_187_040),
    ],
)
def test_branches_of_published_pairs_have_the_published_size(stages, widths, classes, kind, expected):
    method = create_method("ofa")
    assert isinstance(method, OFA)
    shapes = [(channels, side, side) for channels, side in stages]
    with torch.device("meta"):
        method.build(shapes, widths, classes, kind != "maps", kind == "class token")
    assert sum(p.numel() for p in method.parameters()) == expected


def test_a_stage_has_the_published_number_of_parameters():
    sizes = [
        sum(p.numel() for p in conv_branch(channels, 768, 100, 3 - stage).parameters())
        for stage, (channels, _) in enumerate(CNN)
    ]
    assert sizes == [411_748, 397_924, 345_700, 470_884]
    sizes = [
        sum(p.numel() for p in TokenBranch(192, 192, 100, 14, depth).parameters()) for depth in (3, 2, 1, 1)
    ]
    assert sizes == [1_501_156, 1_056_868, 612_580, 612_580]


def test_weights_start_as_the_research_code_has_them(data):
    step, _ = toy_step(create_method("ofa"), data, student="vit")
    for layer in step.method.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std() < 0.03 and (layer.bias is None or not layer.bias.any())
    torch.manual_seed(0)
    method = create_method("ofa", stages=3)
    method.build([(16, 8, 8), (32, 4, 4), (64, 2, 2)], (64, 64), 10, tokens=False)
    last = method.branches[0][0]
    assert last.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_a_branch_of_a_cnn_halves_the_map_once_for_each_stage_that_remains():
    features = torch.randn(2, 6, 9, 12)
    sides = []
    branch = conv_branch(6, 20, 5, remaining=2).eval()
    for layer in branch[:2]:
        features = layer(features)
        sides.append(tuple(features.shape[1:]))
    assert sides == [(12, 5, 6), (20, 3, 3)]
    expected = F.linear(features.mean((2, 3)), branch[-1].weight, branch[-1].bias)
    torch.testing.assert_close(branch[2:](features), expected)


def test_merging_lays_four_neighbours_side_by_side():
    torch.manual_seed(0)
    merge = Merge(3, 5, nn.GELU()).double()
    tokens = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    merged = merge(tokens)
    assert merged.shape == (2, 2, 2, 5)
    padded = torch.zeros(2, 4, 4, 3, dtype=torch.float64)
    padded[:, :3] = tokens
    for row in range(2):
        for column in range(2):
            y, x = 2 * row, 2 * column
            four = [padded[:, y, x], padded[:, y + 1, x], padded[:, y, x + 1], padded[:, y + 1, x + 1]]
            side_by_side = torch.cat(four, dim=1)
            centred = side_by_side - side_by_side.mean(1, keepdim=True)
            normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
            expected = F.gelu(normed @ merge.reduction.weight.T)
            torch.testing.assert_close(merged[:, row, column], expected)


@pytest.mark.parametrize(
    ("grid", "activations"),
    [(56, ["GELU", "GELU", "Identity"]), (28, ["GELU", "Identity"]), (14, ["GELU"]), (7, []), (2, [])],
)
def test_tokens_are_merged_down_to_seven_a_side(grid, activations):
    assert count_merges(grid) == len(activations)
    branch = TokenBranch(4, 8, 5, grid, depth=1)
    if activations:
        assert [type(merge.activation).__name__ for merge in branch.merges] == activations
    else:
        assert [layer.weight.shape for layer in branch.merges] == [(8, 4)]
    assert len(TokenBranch(8, 8, 5, 7, depth=1).merges) == 0


def naive_block(block: nn.Module, tokens: Tensor, heads: int) -> Tensor:
    """A pre-norm transformer block by loops over samples and heads."""

    def normed(x: Tensor, norm: nn.Module) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt() * norm.weight + norm.bias

    results = []
    for x in tokens:
        q, k, v = (normed(x, block.norm1) @ block.attn.qkv.weight.T).chunk(3, dim=1)
        size = x.shape[1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            mixed.append((q[:, part] @ k[:, part].T / size**0.5).softmax(1) @ v[:, part])
        x = x + torch.cat(mixed, dim=1) @ block.attn.proj.weight.T + block.attn.proj.bias
        hidden = F.gelu(normed(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        results.append(x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)
    return torch.stack(results)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_class_token_answers_where_there_is_one_and_else_the_mean(prefix):
    torch.manual_seed(0)
    branch = TokenBranch(8, 8, 5, 14, depth=2).double()
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, 8, 14, 14, dtype=torch.float64)
    before = torch.randn(2, 8, prefix, 1, dtype=torch.float64)
    tokens = branch.merges(features.permute(0, 2, 3, 1)).reshape(2, 49, 8)
    tokens = torch.cat([before[..., 0].transpose(1, 2), tokens], dim=1)
    for block in branch.blocks:
        tokens = naive_block(block, tokens, heads=4)
    vector = tokens[:, 0] if prefix else tokens.mean(1)
    expected = vector @ branch.head.weight.T + branch.head.bias
    torch.testing.assert_close(branch(features, *([before] if prefix else [])), expected)


def test_a_students_class_token_reaches_its_branches(data):
    step, nets = toy_step(create_method("ofa"), data, student="vit")
    assert isinstance(nets, Networks)
    out = nets.student(toy_batch(data).images)
    gradients = torch.autograd.grad(torch.stack(step.method.scores(out)).square().sum(), out.stages)
    assert len(gradients) == 8
    assert [tuple(gradient.shape[1:]) for gradient in gradients[4:]] == [(24, 1, 1)] * 4
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
