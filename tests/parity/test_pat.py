"""PAT's parts and its whole step against the published code, whose departures are the published preset."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.golden import Case, arrays, cases, check_all
from parity.test_losses import leaves
from tutelage.data.batch import Batch
from tutelage.losses import hcl_loss
from tutelage.methods import Clock, Outs, create_method
from tutelage.methods.pat_modules import TABLE_ROWS, RegionAttention, class_token_last, sinusoids
from tutelage.methods.pat_prompts import Entrance, PromptBlock, PromptSwitches, SEBlock
from tutelage.methods.projectors import MapAligner, Patches, TokenAligner, as_grid
from tutelage.models.network import Outputs

PUBLISHED = PromptSwitches(rescale=False, scrambled=True, class_token_last=True)
Given = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


class Answer(NamedTuple):
    """What a part answers, and the module whose parameters' gradients are asked for."""

    outputs: dict[str, Tensor]
    module: nn.Module | None = None


def square(tokens: int) -> tuple[int, int]:
    return math.isqrt(tokens), math.isqrt(tokens)


def taken_apart(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens as a network hands them over: the patches as a map, and the class token as another."""
    sides = square(feature.shape[1])
    prefix = feature.shape[1] - sides[0] * sides[1]
    return as_grid(feature[:, prefix:], sides), feature[:, :prefix].transpose(1, 2).unsqueeze(3)


def as_map(feature: Tensor) -> Tensor:
    return feature if feature.ndim == 4 else class_token_last(*taken_apart(feature))


def map_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """`[C, H, W]` of a map `[C, H, W]` or of tokens `[L, C]` without the class token."""
    return tuple(shape) if len(shape) == 3 else (shape[1], *square(shape[0]))


def loaded(module: nn.Module, prefix: str, given: Given) -> Any:
    """``module`` in training mode with the parameters given under ``prefix``; fusions may be left out."""
    named = {}
    for name, value in given.items():
        if name.startswith(prefix) and not name.endswith("first_rows"):
            own = name.removeprefix(prefix).replace(".projector.proj.", ".proj.")
            named[re.sub(r"^(prompt_blocks\.\d+)\.", r"\1.block.", own)] = value
    module.to(next(iter(named.values())).dtype).train()
    parameters = dict(module.named_parameters())
    assert set(named) <= set(parameters)
    assert all("fusion_block" in name or "fb_aligner" in name for name in set(parameters) - set(named))
    with torch.no_grad():
        for name, value in named.items():
            parameters[name].copy_(value)
    return module


def hcl(given: Given, hyper: Hyper) -> Answer:
    return Answer({"loss": hcl_loss(as_map(given["in.f_s"]), as_map(given["in.f_t"]))})


def gate(given: Given, hyper: Hyper) -> Answer:
    block = SEBlock(given["in.x"].shape[1], rescale=False, ratio=hyper["ratio"])
    return Answer({"gate": loaded(block, "param.", given)(given["in.x"])})


def prompt(given: Given, hyper: Hyper) -> Answer:
    shape, x = hyper["out_shape"][1:], given["in.x"]
    gap_shape, entrance = map_shape(hyper["in_shape"][1:]), Entrance(*_sides(map_shape(shape)))
    if len(shape) == 2:
        height, width = square(shape[0])
        entrance = entrance._replace(layout="tokens", prefix=shape[0] - height * width)
    block = loaded(PromptBlock(entrance, gap_shape, PUBLISHED), "param.", given)
    feedback = given.get("in.feedback")
    return Answer({"y": block(x, None if feedback is None else as_map(feedback))}, block)


def projector(given: Given, hyper: Hyper) -> Answer:
    source, target, x = hyper["in_shape"][1:], hyper["out_shape"][1:], given["in.x"]
    if len(target) == 3:
        return Answer({"y": loaded(MapAligner(map_shape(source)[0], target), "param.", given)(as_map(x))})
    if len(source) == 3:
        patches = Patches(source, square(target[0])[0], target[1])
        return Answer({"y": loaded(patches, "param.patch_embed.", given)(x)})
    return Answer({"y": loaded(TokenAligner(*source, *target), "param.", given)(x)})


def region_tokens(given: Given, hyper: Hyper) -> Answer:
    shape = map_shape(hyper["feature_shape"][1:])
    patches = Patches(shape, square(hyper["patch_length"])[0], hyper["embed_dim"])
    return Answer({"tokens": loaded(patches, "param.projector.", given)(as_map(given["in.x"]))})


def region_attention(given: Given, hyper: Hyper) -> Answer:
    shapes = [map_shape(shape[1:]) for shape in hyper["student_shapes"]]
    regions = hyper["num_queries"] // hyper["stages"]
    module = loaded(RegionAttention(shapes, regions, hyper["dim"], hyper["heads"], "batch"), "param.", given)
    blended = module([as_map(given[f"in.f_s{stage}"]) for stage in range(len(shapes))])
    return Answer({"blended": torch.stack(blended)}, module)


PARTS: dict[str, Callable[[Given, Hyper], Answer]] = {
    "PAT hcl_loss": hcl,
    "PAT SEBlock": gate,
    "PAT PromptBlock": prompt,
    "PAT projector / aligner": projector,
    "PAT RAProjector": region_tokens,
    "PAT RegionAttention": region_attention,
}
METHODS = {*PARTS, "PAT positional encoding", "PAT total"}
PART_CASES = [case for case in cases("loss") if case["method"] in PARTS]
TABLES = [case for case in cases("loss") if case["method"] == "PAT positional encoding"]
TOTALS = [case for case in cases("loss") if case["method"] == "PAT total"]

both_precisions = pytest.mark.parametrize("precision", ["float64", "float32"])


@both_precisions
@pytest.mark.parametrize("case", PART_CASES, ids=lambda case: case["id"])
def test_parts(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = leaves(expected, getattr(torch, precision))
    outputs, module = PARTS[case["method"]](given, case.get("hyper", {}))
    (answer,) = outputs.values()
    scalar = (answer * given["in.cotangent"]).sum() if "in.cotangent" in given else answer
    got = {f"out.{name}": value for name, value in outputs.items()}
    for name in (name.removeprefix("grad.") for name in expected if name.startswith("grad.")):
        source = given.get(f"in.{name}")
        if source is None:
            assert module is not None
            source = module.get_parameter(name.replace("_weight", ".weight"))
        (got[f"grad.{name}"],) = torch.autograd.grad(scalar, source, retain_graph=True)
    check_all(case, expected, got, precision)


@pytest.mark.parametrize("case", TABLES, ids=lambda case: case["id"])
def test_positional_table(case: Case) -> None:
    expected = arrays(case)
    table = sinusoids(TABLE_ROWS, case["hyper"]["dim"])
    got = {
        "out.first_rows": table[: len(expected["out.first_rows"])],
        "out.shape": torch.tensor(table.shape),
    }
    check_all(case, expected, got, "float32")


Prompts = Mapping[int, nn.Module]
Pass = tuple[Tensor, list[Tensor], list[Tensor]]


def convolutional(given: Given, images: Tensor, prompts: Prompts) -> Pass:
    """Stem and four stages: tanh of 3x3 convolutions with strides 1, 2, 2 and 1."""
    name = "param.teacher.{}".format
    x = F.conv2d(images, given[name("stem.weight")], given[name("stem.bias")], stride=2)
    received, features = [], []
    for stage, stride in enumerate((1, 2, 2, 1)):
        x = prompts[stage](x) if stage in prompts else x
        received.append(x)
        conv = name(f"stages.{stage}.conv")
        x = F.conv2d(x, given[f"{conv}.weight"], given[f"{conv}.bias"], stride=stride, padding=1).tanh()
        features.append(x)
    logits = F.linear(x.mean((2, 3)), given[name("head.fc.weight")], given[name("head.fc.bias")])
    return logits, received, features


def on_tokens(given: Given, images: Tensor, prompts: Prompts) -> Pass:
    """Tokens of 2x2 pixels, a class token in front where there is one, four blocks x + tanh(Wx + b)."""
    name = "param.teacher.{}".format
    stem = name("patch_embed.proj" if name("cls_token") in given else "stem.proj")
    x = F.conv2d(images, given[f"{stem}.weight"], given[f"{stem}.bias"], stride=2).flatten(2).transpose(1, 2)
    if name("cls_token") in given:
        x = torch.cat([given[name("cls_token")].expand(len(x), -1, -1), x], 1) + given[name("pos_embed")]
    received, features = [], []
    for block in range(4):
        x = prompts[block](x) if block in prompts else x
        received.append(x)
        layer = name(f"blocks.{block}.fc")
        x = x + F.linear(x, given[f"{layer}.weight"], given[f"{layer}.bias"]).tanh()
        features.append(x)
    x = F.layer_norm(x, x.shape[2:], given[name("norm.weight")], given[name("norm.bias")])
    pooled = x[:, 0] if name("cls_token") in given else x.mean(1)
    return F.linear(pooled, given[name("head.weight")], given[name("head.bias")]), received, features


def handed_over(logits: Tensor, features: Sequence[Tensor]) -> Outputs:
    """Outputs as a network asked for class tokens gives them."""
    if features[0].ndim == 4 or square(features[0].shape[1])[0] ** 2 == features[0].shape[1]:
        return Outputs(logits, None, tuple(as_map(feature) for feature in features))
    maps, prefixes = zip(*map(taken_apart, features), strict=True)
    return Outputs(logits, None, (*maps, *prefixes))


def _sides(shape: Sequence[int]) -> tuple[int, tuple[int, int]]:
    return shape[0], (shape[1], shape[2])


def entrance_of(received: Tensor) -> Entrance:
    if received.ndim == 4:
        return Entrance(*_sides(received.shape[1:]))
    tokens, width = received.shape[1:]
    sides = square(tokens)
    return Entrance(width, sides, "tokens", tokens - sides[0] * sides[1])


@both_precisions
@pytest.mark.parametrize("case", TOTALS, ids=lambda case: case["id"])
def test_consecutive_steps(case: Case, precision: str) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    teacher = convolutional if hyper["teacher"] == "convnext" else on_tokens
    _, received, features = teacher(given, given["in.step0.image"], {})
    stages = len(features)
    method: Any = create_method(
        "pat",
        preset="published",
        temperature=hyper["kd_temperature"],
        feature_weight=hyper["mse_weight"],
        drift_weight=hyper["reg_weight"],
        prompt_stages=hyper["afp_stage"],
        regions=hyper["num_queries"] // stages,
        dim=hyper["raa_dim"],
        heads=hyper["heads"],
    )
    shapes = [map_shape(shape) for shape in hyper["student_shapes"]]
    tokens = features[0].ndim == 3
    method.build(shapes, [as_map(f).shape[1:] for f in features], [*map(entrance_of, received)], tokens)
    loaded(method, "param.", {name: v for name, v in given.items() if "param.teacher" not in name})
    prompts = {stage: prompt for stage, prompt in enumerate(method.inserts()) if prompt is not None}
    got: dict[str, Tensor] = {}
    steps = sum(re.fullmatch(r"in\.step\d+\.image", name) is not None for name in expected)
    for step in (f"step{number}" for number in range(steps)):
        images, targets = given[f"in.{step}.image"].detach(), given[f"in.{step}.target"]
        rows = torch.arange(len(targets))
        batch = method.views(Batch(images, targets, rows, torch.zeros_like(rows)), torch.Generator())
        with torch.no_grad():
            plain, _, _ = teacher(given, images, {})
        prompted, _, prompted_features = teacher(given, images, prompts)
        sources = {"logits_student": given[f"in.{step}.logits_student"]}
        sources |= {f"f_s{stage}": given[f"in.{step}.f_s{stage}"] for stage in range(stages)}
        student = handed_over(*_first_and_rest(list(sources.values())))
        second = handed_over(prompted, prompted_features)
        terms = method(batch, Outs((student,), Outputs(plain), second), Clock(*torch.zeros(2)))
        loss = torch.stack(list(terms.values())).sum()
        sources |= {f"beta_stage{s + 1}": module.block.beta for s, module in prompts.items()}
        sources["attention_to_q_weight"] = method.attention_blending.to_q.weight
        gradients = torch.autograd.grad(loss, list(sources.values()))
        got |= {f"grad.{step}.{name}": value for name, value in zip(sources, gradients, strict=True)}
        names = {"ce": "loss_gt", "kd": "loss_kd", "features": "loss_pat_mse", "drift": "loss_pat_reg"}
        got |= {f"out.{step}.{names[name]}": term for name, term in terms.items()}
        got |= {f"out.{step}.loss": loss, f"out.{step}.teacher_logits_plain": plain}
        pairs = zip(method.align(student), method.stages(second), strict=True)
        for number, pair in enumerate(pairs, start=1):
            for role, value in zip(("student", "teacher"), pair, strict=True):
                flat = (value.flatten(2).transpose(1, 2) if tokens else value).flatten()
                got[f"out.{step}.prev_{role}_stage{number}.first8"] = flat[:8]
        method.commit(batch)
    check_all(case, expected, got, precision)


def _first_and_rest(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return tensors[0], tensors[1:]
