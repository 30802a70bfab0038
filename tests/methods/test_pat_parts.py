"""PAT's attention and prompts against naive ones, the forms they take, and their published sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import UserError
from tutelage.methods import create_method
from tutelage.methods.pat_modules import RegionAttention, class_token_last
from tutelage.methods.pat_prompts import Entrance, PromptBlock, PromptSwitches, SEBlock
from tutelage.methods.projectors import Patches, as_grid


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["token", "batch", "none"])
def test_regions_of_all_stages_attend_to_each_other(position):
    shapes, width, heads, regions = [(3, 8, 8), (5, 3, 3)], 8, 2, 4
    attention = RegionAttention(shapes, regions, width, heads, position).double()
    stages = [normal(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    got = torch.stack(attention(stages))
    table = attention.positional_encodings[:, 0]
    for b in range(2):
        tokens = []
        for stage, patches in zip(stages, attention.projector_s, strict=True):
            side = math.ceil(stage.shape[2] / 2)
            image = F.interpolate(stage[b : b + 1], (2 * side, 2 * side), mode="nearest")[0]
            for row in range(2):
                for column in range(2):
                    cut = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                    tokens.append((patches.proj.weight * cut).sum((1, 2, 3)) + patches.proj.bias)
        tokens = [attention.norm(token) for token in tokens]
        places = {"token": table[:8], "batch": table[b].expand(8, -1), "none": 0 * table[:8]}[position]
        queries = [attention.to_q(token) + places[i] for i, token in enumerate(tokens)]
        keys = [attention.to_kv(token)[:width] + places[i] for i, token in enumerate(tokens)]
        values = [attention.to_kv(token)[width:] for token in tokens]
        for i, query in enumerate(queries):
            answer = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                scores = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(width // heads)
                answer.append(
                    sum(w * value[part] for w, value in zip(scores.softmax(0), values, strict=True))
                )
            torch.testing.assert_close(got[i // regions, b, i % regions], torch.cat(answer))


def test_the_positions_are_those_of_the_paper():
    attention = RegionAttention([(3, 4, 4)], 4, 6, 2, "token")
    table = attention.positional_encodings
    assert table.shape == (5000, 1, 6)
    for row, column in ((0, 0), (1, 1), (7, 2), (40, 5)):
        angle = row / 10000 ** (2 * (column // 2) / 6)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert float(table[row, 0, column]) == pytest.approx(expected, abs=1e-5)


def test_more_samples_than_positions_are_refused():
    attention = RegionAttention([(3, 4, 4)], 4, 6, 2, "batch")
    with pytest.raises(UserError, match=r"method\.position=token"):
        attention([torch.zeros(5001, 3, 4, 4)])


@pytest.mark.parametrize(
    ("side", "grid", "patch", "resized"), [(56, 4, 14, 56), (14, 4, 4, 16), (7, 4, 2, 8), (2, 4, 1, 4)]
)
def test_regions_tile_the_map(side, grid, patch, resized):
    patches = Patches((3, side, side), grid, 5)
    assert patches.proj.kernel_size == (patch, patch) and patches.sides == (resized, resized)
    assert patches(torch.zeros(2, 3, side, side)).shape == (2, grid * grid, 5)


# -- prompts ----------------------------------------------------------------------------------------


ENTRANCES = {
    "map": Entrance(8, (4, 4)),
    "grid": Entrance(8, (4, 4), "grid"),
    "tokens": Entrance(8, (4, 4), "tokens", 1),
}


def as_received(image: Tensor, entrance: Entrance) -> Tensor:
    """A map in the form of an entrance; the class token holds sevens."""
    if entrance.layout == "map":
        return image
    last = image.permute(0, 2, 3, 1)
    if entrance.layout == "grid":
        return last
    return torch.cat([last.new_full((len(last), 1, 8), 7.0), last.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("layout", ENTRANCES)
def test_a_prompt_changes_all_forms_alike_and_nothing_at_first(layout):
    torch.manual_seed(0)
    entrance, gap_shape = ENTRANCES[layout], (6, 2, 2)
    block = PromptBlock(entrance, gap_shape).double()
    reference = PromptBlock(ENTRANCES["map"], gap_shape).double()
    reference.load_state_dict(block.state_dict())
    image, gap = normal(3, 8, 4, 4), normal(3, *gap_shape, seed=1)
    received = as_received(image, entrance)
    for given in (None, gap):
        assert torch.equal(block(received, given), received)
    for either in (block, reference):
        either.beta.data.fill_(0.7)
    for given in (None, gap):
        changed = block(received, given)
        torch.testing.assert_close(changed, as_received(reference(image, given), entrance))
        assert not torch.allclose(changed, received)


@pytest.mark.parametrize("rescale", [True, False])
def test_fusion_and_prompt_are_the_convolutions_of_the_paper(rescale):
    torch.manual_seed(0)
    block = PromptBlock(ENTRANCES["map"], (8, 4, 4), PromptSwitches(rescale=rescale)).double()
    block.beta.data.fill_(0.5)
    x, gap = normal(2, 8, 4, 4), normal(2, 8, 4, 4, seed=1)

    def conv(layer, z, groups=1):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        reach = weight.shape[-1] // 2
        out = torch.zeros(len(z), len(weight), *z.shape[2:], dtype=torch.float64)
        per, fan = len(weight) // groups, weight.shape[1]
        padded = F.pad(z, [reach] * 4)
        for o in range(len(weight)):
            first = o // per * fan
            for dy in range(2 * reach + 1):
                for dx in range(2 * reach + 1):
                    shifted = padded[:, first : first + fan, dy : dy + z.shape[2], dx : dx + z.shape[3]]
                    out[:, o] += (shifted * torch.from_numpy(weight[o, :, dy, dx])[:, None, None]).sum(1)
            out[:, o] += float(bias[o])
        return out

    def gated(layer, z):
        means = z.mean((2, 3), keepdim=True)
        gate = 1 / (1 + (-conv(layer.excitation, conv(layer.compress, means).clamp(min=0))).exp())
        return z * gate if rescale else gate

    with torch.no_grad():
        fusion, prompt = block.fusion_block, block.prompt_block
        z = conv(fusion[2], conv(fusion[1], conv(fusion[0], torch.cat([x, gap], 1))))
        z = conv(fusion[4], gated(fusion[3], z))
        z = conv(prompt[2], conv(prompt[1], conv(prompt[0], z, groups=4), groups=8))
        z = conv(prompt[4], gated(prompt[3], z), groups=4)
        torch.testing.assert_close(block(x, gap), x + 0.5 * z)


@pytest.mark.parametrize("rescale", [True, False])
def test_samples_without_a_gap_are_prompted_by_what_they_are(rescale):
    torch.manual_seed(0)
    block = PromptBlock(ENTRANCES["map"], (8, 4, 4), PromptSwitches(rescale=rescale)).double()
    block.beta.data.fill_(0.5)
    x, gap = normal(3, 8, 4, 4), normal(3, 8, 4, 4, seed=1)
    known = torch.tensor([True, False, True])
    mixed = block(x, gap, known)
    torch.testing.assert_close(mixed[known], block(x, gap)[known])
    torch.testing.assert_close(mixed[~known], block(x)[~known])


def test_the_published_layout_scrambles_tokens_and_takes_the_last_for_the_class_token():
    entrance = ENTRANCES["tokens"]
    block = PromptBlock(entrance, (8, 4, 4), PromptSwitches(scrambled=True, class_token_last=True)).double()
    x = normal(2, 17, 8)
    expected = torch.cat([x[:, :16].transpose(1, 2).reshape(2, 16, 8), x[:, 16:]], dim=1)
    assert torch.equal(block(x), expected)
    patches, prefix = as_grid(x[:, 1:], (4, 4)), x[:, :1].transpose(1, 2).unsqueeze(3)
    assert torch.equal(class_token_last(patches, prefix), as_grid(x[:, :16], (4, 4)))


def test_a_gate_lies_between_0_and_1_and_rescales():
    torch.manual_seed(0)
    block, x = SEBlock(32, rescale=False), torch.randn(2, 32, 3, 3)
    gate = block(x)
    assert gate.shape == (2, 32, 1, 1) and gate.min() > 0 and gate.max() < 1
    block.rescale = True
    torch.testing.assert_close(block(x), x * gate)


# -- sizes ------------------------------------------------------------------------------------------

STUDENTS = {
    "resnet18": [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
    "deit_tiny": [(192, 14, 14)] * 4,
    "mobilenetv2": [(24, 56, 56), (32, 28, 28), (96, 14, 14), (1280, 7, 7)],
}
SWIN = [(96, 56), (192, 28), (384, 14), (768, 7)]
TEACHERS = {
    "swin_tiny": (SWIN, SWIN, "grid"),
    "convnext_tiny": (SWIN, [(96, 56), (96, 56), (192, 28), (384, 14)], "map"),
    "vit_small": ([(384, 14)] * 4, [(384, 14)] * 4, "tokens"),
    "resnet50": (
        [(256, 56), (512, 28), (1024, 14), (2048, 7)],
        [(64, 56), (256, 56), (512, 28), (1024, 14)],
        "map",
    ),
}


@pytest.mark.parametrize(
    ("teacher", "student", "prompts", "attention", "aligners"),
    [
        ("swin_tiny", "resnet18", 24_138_904, 13_570_560, 812_533),
        ("convnext_tiny", "deit_tiny", 6_651_364, 7_082_496, 741_376),
        ("vit_small", "mobilenetv2", 18_191_044, 7_410_176, 804_496),
        ("resnet50", "deit_tiny", 45_287_596, 7_082_496, 1_970_176),
    ],
)
def test_the_parts_are_of_the_published_size(teacher, student, prompts, attention, aligners):
    outputs, inputs, layout = TEACHERS[teacher]
    method = create_method("pat")
    with torch.device("meta"):
        method.build(
            STUDENTS[student],
            [(channels, side, side) for channels, side in outputs],
            [Entrance(channels, (side, side), layout) for channels, side in inputs],
            tokens=layout != "map",
        )
    parts = (method.prompt_blocks, method.attention_blending, method.aligners)
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sizes == [prompts, attention, aligners]
    assert len(method.attention_blending.state_dict()) == 15
