"""The published figures: complete, in range, each with its source, and found again."""

from __future__ import annotations

import pytest
import timm

import tutelage.models  # noqa: F401 (registers the CIFAR networks)
from tutelage.errors import TutelageError
from tutelage.methods import method_config, method_names
from tutelage.runs.published import PERCENT, Figure, find, published_tables, read_tables

TABLES = {table.id: table for table in published_tables()}
FIGURES = [figure for table in published_tables() for figure in table.figures]
FILE = """
publication: {project: P, url: "https://example.org"}
protocol: As usual.
tables:
  - id: one
    title: One
    shared: {dataset: cifar100, metric: top1, source: paper, method: kd, note: shared}
    columns: [{teacher: a, student: b_cifar, note: column}, {student: c, source: log}]
    rows:
      - {label: first, figures: [[50, 0.5], 60.5]}
      - {label: second, note: row, recipe: "x/{student}", figures: [null, {value: 70, note: cell}]}
"""


def test_the_tables_have_all_their_figures() -> None:
    sizes = {name: len(table.figures) for name, table in TABLES.items()}
    assert sizes == {
        "crd/cifar100-networks": 15,
        "crd/cifar100-same": 90,
        "crd/cifar100-different": 72,
        "crd/cifar100-reproduced": 1,
        "dpcd/cifar100-networks": 13,
        "dpcd/cifar100": 10,
        "dpcd/imagenet-networks": 4,
        "dpcd/imagenet": 2,
        "dpcd/baseline": 5,
        "dpcd/cost": 2,
        "dvcd/cifar100": 9,
        "hsakd/cifar100-networks": 17,
        "hsakd/cifar100": 96,
        "hsakd/cifar100-reproduced": 1,
        "hsakd/ablation-losses": 10,
        "hsakd/ablation-branches": 10,
        "hsakd/motivation": 6,
        "hsakd/few-shot": 13,
        "hsakd/transfer": 24,
        "hsakd/detection": 5,
        "hsakd/imagenet-networks": 6,
        "hsakd/imagenet": 18,
        "hsakd/imagenet-curves": 53,
        "hsakd/imagenet-branches": 24,
        "hsakd/imagenet-time": 5,
        "hsakd/cost": 18,
        "hssakd/mutual": 16,
        "hssakd/mutual-imagenet": 2,
        "hssakd/first-epoch": 40,
        "ofa/cifar100-networks": 9,
        "ofa/cifar100": 96,
        "ofa/imagenet-networks": 10,
        "ofa/imagenet": 120,
        "ofa/reproduced": 4,
        "packd/cifar100-networks": 15,
        "packd/cifar100-same": 90,
        "packd/imagenet-networks": 4,
        "packd/imagenet": 16,
        "packd/cifar100-different": 75,
        "packd/transfer": 24,
        "packd/few-shot": 12,
        "packd/positives": 20,
        "packd/weighting": 6,
        "packd/terms": 6,
        "pat/cifar100": 4,
        "pat/imagenet": 3,
        "pat/ablation": 6,
        "pat/cost": 2,
        "pat/cifar100-reproduced": 8,
    }
    assert len(published_tables()) == len(TABLES)


def test_every_network_has_a_name_that_timm_knows() -> None:
    networks = {name for figure in FIGURES for name in (figure.teacher, figure.student) if name}
    assert {name for name in networks if not timm.is_model(name)} == {"ResNet-18"}


def test_accuracies_look_like_percent() -> None:
    for figure in FIGURES:
        if figure.metric in PERCENT:
            assert 5 < figure.value < 95
        assert figure.teacher_top1 is None or 70 < figure.teacher_top1 < 93
        assert figure.std is None or 0 < figure.std < 2


@pytest.mark.parametrize(
    ("method", "teacher", "student", "dataset", "ratio", "values"),
    [
        (
            "hsakd",
            "wrn_40_2_cifar",
            "wrn_16_2_cifar",
            "cifar100",
            1.0,
            [(77.20, 0.17, 76.45), (78.67, 0.20, 80.70)],
        ),
        (
            "hsakd",
            "resnet32x4_cifar",
            "shufflenetv2_cifar",
            "cifar100",
            1.0,
            [(79.93, 0.11, 79.63), (80.86, 0.15, 83.73)],
        ),
        ("hsakd", "resnet56_cifar", "resnet20_cifar", "cifar100", 0.5, [(72.18, 0.41, None)]),
        ("crd", "vgg13_cifar", "mobilenetv2_s1_cifar", "cifar100", 1.0, [(76.13, 0.16, 74.64)]),
        ("sskd", "resnet50_cifar", "mobilenetv2_s1_cifar", "cifar100", 1.0, [(78.21, 0.16, 79.34)]),
        ("kd", "resnet34", "resnet18", "imagenet", 1.0, [(70.66, None, 73.31)] * 2),
        ("hssakd", None, "resnet32x4_cifar", "cifar100", 1.0, [(84.91, 0.19, None)]),
        ("hsakd_teacher", None, "resnet50_cifar", "cifar100", 1.0, [(83.85, None, None)]),
        ("dpcd", "resnet56_cifar", "resnet20_cifar", "cifar100", 1.0, [(72.58, None, 72.34)]),
        ("dpcd", "vgg13_cifar", "mobilenetv2_cifar", "cifar100", 1.0, [(70.87, None, 74.64)]),
        ("dvcd", "wrn_40_2_cifar", "shufflenetv1_cifar", "cifar100", 1.0, [(77.72, None, None)]),
        (
            "none",
            None,
            "mobilenetv2_cifar",
            "cifar100",
            1.0,
            [(64.60, None, None), (64.60, None, None), (64.39, None, None)],
        ),
        (
            "kd",
            "resnet56_cifar",
            "resnet20_cifar",
            "cifar100",
            1.0,
            [(70.66, None, 72.34), (71.54, None, None), (70.91, 0.10, 73.44), (71.12, None, 72.75)],
        ),
        ("packd", "resnet50_cifar", "vgg8_cifar", "cifar100", 1.0, [(76.71, None, 78.87)]),
        ("packd", "resnet56_cifar", "resnet20_cifar", "cifar100", 0.75, [(71.70, None, None)]),
        ("packd", "vgg13_cifar", "mobilenetv2_cifar", "cifar100", 1.0, []),
        ("crd", "resnet110_cifar", "resnet20_cifar", "cifar100", 1.0, [(71.46, None, 74.31)]),
        ("dpcd", "resnet56_cifar", "resnet20_cifar", "cifar100", 0.5, []),
        ("ofa", "vit_small_patch16_224", "mobilenetv2_100", "cifar100", 1.0, [(78.45, None, 92.04)]),
        ("dist", "swin_tiny_patch4_window7_224", "resmlp_12_224", "cifar100", 1.0, [(11.05, None, 89.26)]),
        ("ofa", "resnet50", "swin_nano_patch4_window7_224", "imagenet", 1.0, [(78.64, None, 80.38)]),
        (
            "ofa",
            "deit_tiny_patch16_224",
            "resnet18",
            "imagenet",
            1.0,
            [(71.34, None, 72.17), (71.26, None, None)],
        ),
        ("pat", "convnext_tiny", "deit_tiny_patch16_224", "cifar100", 1.0, [(79.59, None, 88.41)]),
        (
            "pat",
            "convnext_tiny",
            "resmlp_12_224",
            "cifar100",
            1.0,
            [(83.50, None, 88.41), (81.05, None, None)],
        ),
        ("pat", "mixer_b16_224", "resnet18", "cifar100", 1.0, []),
        ("hsakd", "vgg13_cifar", "mobilenetv2_cifar", "cifar100", 1.0, []),
    ],
)
def test_figures_are_found(method, teacher, student, dataset, ratio, values) -> None:
    found = find(method, teacher, student, dataset, ratio)
    assert [(figure.value, figure.std, figure.teacher_top1) for figure in found] == values


def test_ablations_and_other_metrics_are_found_when_asked_for() -> None:
    pair = ("hsakd", "wrn_40_2_cifar", "shufflenetv1_cifar", "cifar100")
    assert [f.value for f in find(*pair, settings={"kd_weight": 0, "branches": [3]})] == [77.97]
    assert [f.value for f in find(*pair, settings={"joint_labels": True})] == [79.91]
    frozen = find("hsakd_teacher", None, "vgg13_cifar", "cifar100", settings={"frozen": True})
    assert [(f.value, f.label) for f in frozen] == [(74.64, "Teacher")]
    assert [f.value for f in find("hsakd", "resnet34", "resnet18", "imagenet", metric="top5")] == [
        90.85,
        91.00,
    ]
    without_kd = {"kd_weight": 0, "mix_kd_weight": 0}
    light = ("packd", "resnet32x4_cifar", "shufflenetv1_cifar", "cifar100")
    assert [f.value for f in find(*light, settings=without_kd)] == [77.77]
    assert [f.value for f in find(*light, settings={**without_kd, "mixes": 1})] == [77.23, 77.24]
    transfer = find("hsakd", "vgg13_cifar", "mobilenetv2_s1_cifar", "stl10", metric="linear_top1")
    assert [f.value for f in transfer] == [74.66]


def test_a_number_printed_by_several_projects_comes_once_from_each() -> None:
    found = find("none", None, "wrn_40_1_cifar", "cifar100")
    assert [(f.project, f.value) for f in found] == [
        ("CRD", 71.98),
        ("DPCD", 71.98),
        ("HSAKD", 71.95),
        ("HSSAKD", 71.95),
        ("PACKD", 71.32),
    ]


def test_dpcds_networks_are_those_of_the_crd_benchmark() -> None:
    def networks(table: str) -> dict[str, float]:
        return {figure.student: figure.value for figure in TABLES[table].figures}

    assert networks("dpcd/cifar100-networks").items() <= networks("crd/cifar100-networks").items()


def gains(table: str, networks: str) -> dict[str, list[float]]:
    """What each method adds to the students from scratch, pair by pair."""
    alone = {f.student: f.value for f in TABLES[networks].figures if f.label == "From scratch"}
    found: dict[str, list[float]] = {}
    for f in TABLES[table].figures:
        found.setdefault(f.label, []).append(f.value - alone[f.student])
    return found


@pytest.mark.parametrize(
    ("table", "expected", "largest"),
    [
        (
            "cifar100",
            {
                "FitNet": -5.20,
                "CC": -0.33,
                "RKD": -1.40,
                "CRD": -0.02,
                "KD": 3.165,
                "DIST": -2.31,
                "OFA": 7.47,
            },
            14.66,
        ),
        (
            "imagenet",
            {"FitNet": 1.14, "CC": 0.50, "RKD": -0.37, "CRD": -1.77, "KD": 1.56, "DIST": 1.68, "OFA": 2.20},
            4.38,
        ),
    ],
)
def test_ofas_average_gains_are_those_that_later_papers_print(table, expected, largest) -> None:
    found = gains(f"ofa/{table}", f"ofa/{table}-networks")
    averages = {label: sum(values) / len(values) for label, values in found.items()}
    assert {label: averages[label] for label in expected} == pytest.approx(expected, abs=0.0051)
    assert max(found["OFA"]) == pytest.approx(largest)


def test_pats_largest_gain_is_the_one_that_is_quoted() -> None:
    assert max(gains("pat/cifar100", "ofa/cifar100-networks")["PAT"]) == pytest.approx(16.94)


def test_a_teacher_of_ofa_and_pat_has_the_accuracy_of_its_table() -> None:
    for data in ("cifar100", "imagenet"):
        networks = TABLES[f"ofa/{data}-networks"].figures
        alone = {f.student: f.value for f in networks if f.label == "Teacher"}
        for name in (f"ofa/{data}", f"pat/{data}"):
            assert all(f.teacher_top1 == alone[f.teacher] for f in TABLES[name].figures)


def test_figures_that_were_not_read_in_their_paper_say_so() -> None:
    marked = {f.table for f in FIGURES if f.source in {"quoted", "unchecked"}}
    assert marked == {
        name for name in TABLES if name.startswith(("ofa/", "pat/")) and "reproduced" not in name
    }
    for table in marked:
        tables = published_tables()
        protocol = next(t.protocol for t in tables if t.id == table)
        assert "Figures marked" in protocol


@pytest.mark.parametrize("table", [name for name in TABLES if name.startswith(("crd/", "packd/"))])
def test_a_teacher_has_the_accuracy_of_its_project(table: str) -> None:
    alone = {
        (project, f.student): f.value
        for project in ("crd", "packd")
        for name in (f"{project}/cifar100-networks", "packd/imagenet-networks")
        for f in TABLES[name].figures
        if f.metric == "top1"
    }
    for figure in TABLES[table].figures:
        if figure.teacher_top1 is not None:
            assert figure.teacher_top1 == alone[table.split("/")[0], figure.teacher]


@pytest.mark.parametrize(
    ("table", "gain"), [("packd/cifar100-same", 1.107), ("packd/cifar100-different", 1.194)]
)
def test_packds_gain_over_the_best_of_the_others_is_the_one_that_the_paper_claims(
    table: str, gain: float
) -> None:
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for f in TABLES[table].figures:
        pair = f"{f.teacher} {f.student}"
        if not f.method.startswith("packd"):
            theirs[pair] = max(f.value, theirs.get(pair, 0))
        elif not f.settings and f.method == "packd":
            ours[pair] = f.value
    assert sum(ours[pair] - theirs[pair] for pair in ours) / len(ours) == pytest.approx(gain, abs=0.0005)


def test_packds_charts_agree_with_its_tables() -> None:
    def values(*names: str) -> dict[tuple, float]:
        return {
            (f.method, f.teacher, f.student, str(f.settings)): f.value
            for name in names
            for f in TABLES[name].figures
        }

    tables = values("packd/cifar100-same", "packd/cifar100-different")
    charts = values("packd/positives", "packd/terms")
    both = tables.keys() & charts.keys()
    assert len(both) == 6
    assert all(charts[key] == pytest.approx(tables[key], abs=0.021) for key in both)


def test_settings_are_ones_that_our_methods_have() -> None:
    for figure in FIGURES:
        if figure.method in method_names():
            settings = method_config(figure.method, figure.settings).model_dump()
            assert figure.settings.keys() <= settings.keys()


def test_the_gain_over_sskd_is_the_one_that_the_paper_claims() -> None:
    def row(label: str) -> list[float]:
        return [figure.value for figure in TABLES["hsakd/cifar100"].figures if figure.label == label]

    gains = [ours - theirs for ours, theirs in zip(row("HSAKD*"), row("SSKD"), strict=True)]
    assert sum(gains) / len(gains) == pytest.approx(2.56, abs=0.005)


def test_losses_of_the_logs_add_up() -> None:
    def curve(label: str) -> dict[int | None, float]:
        return {f.epoch: f.value for f in TABLES["hsakd/imagenet-curves"].figures if f.label == label}

    for run in ("HSAKD", "HSAKD*"):
        whole, labels, teacher = curve(f"{run}, loss"), curve(f"{run}, cross entropy"), curve(f"{run}, KL")
        assert len(labels) == len(teacher) == 2
        assert all(whole[e] == pytest.approx(labels[e] + teacher[e], abs=0.011) for e in labels)


def test_the_cost_is_about_nine_to_fourteen_times_that_of_kd() -> None:
    cost = {(f.teacher, f.student, f.method): f.value for f in TABLES["hsakd/cost"].figures}
    ratios = [cost[t, s, "hsakd"] / cost[t, s, "kd"] for t, s, m in cost if m == "kd"]
    assert ratios == pytest.approx([9.4, 9.3, 9.3, 9.5, 13.9, 11.2, 9.3, 9.5, 10.6], abs=0.06)
    assert {f.source for f in FIGURES if f.metric == "step_mmacs"} == {"derived"}


@pytest.mark.parametrize(
    ("network", "short"),
    [
        ("resnet20_cifar", "resnet20"),
        ("swin_tiny_patch4_window7_224", "swin_tiny"),
        ("vit_small_patch16_224", "vit_small"),
        ("mixer_b16_224", "mixer_b16"),
        ("mobilenetv2_100", "mobilenetv2"),
        ("resnet50", "resnet50"),
        ("resnet32x4_cifar", "resnet32x4"),
    ],
)
def test_recipes_are_named_by_networks_without_their_sizes(network: str, short: str) -> None:
    (table,) = read_tables(FILE.replace("student: c", f"student: {network}"), "f.yaml")
    assert table.figures[-1].recipe == f"x/{short}"


def test_what_is_nearer_to_a_number_wins() -> None:
    (table,) = read_tables(FILE, "f.yaml")
    shown = [(f.label, f.value, f.std, f.teacher, f.source, f.note, f.recipe) for f in table.figures]
    assert shown == [
        ("first", 50.0, 0.5, "a", "paper", "column", None),
        ("first", 60.5, None, None, "log", "shared", None),
        ("second", 70.0, None, None, "log", "cell", "x/c"),
    ]
    assert isinstance(table.figures[0], Figure)
    assert (table.publication.project, table.protocol) == ("P", "As usual.")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("60.5]", "600.5]", "top1 of 600.5 is above 100 percent"),
        ("60.5]", "60.5, 61]", "row first has 3 figures for 2 columns"),
        ("60.5]", "0]", "value: Input should be greater than 0"),
        ("source: paper, ", "", "source: Field required"),
        ("source: log", "source: rumour", "source: Input should be"),
        ("method: kd", "method: KD", "method: String should match"),
        ("label: first", "labels: first", "label"),
        ("student: c", "students: c", "student"),
        ("figures: [null", "numbers: [null", "figures"),
        ("{teacher: a, ", "{teacher_top1: 70, ", "but no teacher"),
        ("protocol: As usual.", "", "protocol: Field required"),
        ("tables:", "tables: [", "can't be read"),
        ("x/{student}", "x/{pupil}", "pupil"),
    ],
)
def test_a_damaged_file_is_refused(old: str, new: str, problem: str) -> None:
    assert old in FILE
    with pytest.raises(TutelageError, match=problem) as caught:
        read_tables(FILE.replace(old, new), "f.yaml")
    assert "f.yaml" in str(caught.value)


def test_all_projects_are_there() -> None:
    projects = {table.publication.project for table in published_tables()}
    assert projects == {"CRD", "DPCD", "DvCD", "HSAKD", "HSSAKD", "OFA-KD", "PACKD", "PAT"}
