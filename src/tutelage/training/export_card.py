"""The model card: what an exported network is, where its weights come from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

from tutelage.training.export_source import Source

Facts = Iterable[tuple[str, Any]]

KNOWN = "import tutelage.models  # makes the network's name known to timm\n"
TIMM = Template("""\
With a recent timm, from this folder (or from the hub, with `hf-hub:OWNER/NAME`):

```python
import timm
$known
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

With any timm:

```python
import json

import timm
$known
config = json.load(open("FOLDER/config.json"))
overlay = {**config["pretrained_cfg"], "file": "FOLDER/model.safetensors"}
model = timm.create_model(
    "$name", pretrained=True, pretrained_cfg_overlay=overlay, **config["model_args"]
)
```
""")
PROGRAMS = {
    "model.onnx": """
Without PyTorch, for any number of normalised images `[B, 3, H, W]`:

```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
logits = session.run(["logits"], {"images": images})[0]
```
""",
    "model.pt2": """
As a program of PyTorch's, without the network's code:

```python
import torch

model = torch.export.load("FOLDER/model.pt2").module()
```
""",
}


def model_card(
    source: Source, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], files: Sequence[str]
) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        source: What was exported.
        config: Content of ``config.json``.
        rows: Size and speed of student and teacher, see `export.measure`.
        files: Names of the files in the folder.
    """
    parts = [
        _front_matter(source),
        f"# {source.part.name} on {source.facts.get('dataset') or 'images'}\n",
        _introduction(source),
        "## Accuracy\n",
        _accuracy(source),
        "## Origin\n",
        _listed(_origin(source)),
        "## Images\n",
        _listed(_images(config)),
        "## Use\n",
        _usage(source, config, files),
        "## Size and speed\n",
        as_table(rows),
    ]
    return "\n".join(parts)


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of student and teacher in Markdown."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = ["| " + " | ".join(titles) + " |", "| " + " | ".join("---" for _ in titles) + " |"]
    lines += ["| " + " | ".join(_cell(row.get(title)) for title in titles) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _front_matter(source: Source) -> str:
    """What the hub reads. Nothing is said about a licence: that depends on data and teacher."""
    tags = ["image-classification", "timm", "tutelage"]
    tags += ["knowledge-distillation"] if source.run.get("teacher") else []
    lines = ["---", "tags:", *(f"- {tag}" for tag in tags)]
    lines += ["library_name: timm", "pipeline_tag: image-classification", "---", ""]
    return "\n".join(lines)


def _introduction(source: Source) -> str:
    teacher, method = source.run.get("teacher"), source.facts.get("method")
    taught = f", distilled from {teacher['name']} with {method}" if teacher else ""
    return f"An image classifier for {source.num_classes} classes{taught}; exported by Tutelage.\n"


def _accuracy(source: Source) -> str:
    facts, teacher = source.facts, source.run.get("teacher")
    if not facts.get("test"):
        noted = facts.get("top1")
        return "Nothing is noted beside the weights.\n" if noted is None else f"- noted top-1: {noted:.2f}%\n"
    over = source.run.get("status") == "finished"
    when = "after the last epoch" if over else f"after epoch {facts.get('epoch', 0) + 1} of a longer run"
    which = {
        "last": when,
        "best": f"after the best epoch, chosen on {_chosen_on(source)}",
        "ema": f"of the moving average of the weights, {when}",
        "ema_best": f"of the moving average of the weights, after its best epoch, chosen on "
        f"{_chosen_on(source)}",
        "": "as noted beside the weights",
    }[source.which]
    lines = [f"- test, {which}: {_percentages(facts['test'])}"]
    if facts.get("val"):
        lines.append(f"- validation: {_percentages(facts['val'])}")
    if teacher:
        lines.append(f"- the teacher {teacher['name']} on the same images: {_percentages(teacher['test'])}")
    return "\n".join(lines) + "\n"


def _chosen_on(source: Source) -> str:
    return str(source.run.get("summary", {}).get("best", {}).get("by") or "test")


def _percentages(measured: Mapping[str, Any]) -> str:
    return f"top-1 {measured['top1']:.2f}%, top-5 {measured['top5']:.2f}%"


def _origin(source: Source) -> Facts:
    facts, run = source.facts, source.run
    protocol = run.get("protocol", {})
    teacher = run.get("teacher") or {}
    return [
        ("dataset", facts.get("dataset")),
        ("training images", protocol.get("train_images")),
        ("epochs", protocol.get("epochs")),
        ("method", facts.get("method")),
        ("teacher", teacher.get("name")),
        ("teacher's weights (SHA-256)", teacher.get("weights_hash")),
        ("seed", run.get("seed")),
        ("recipe's hash", facts.get("recipe_hash")),
        ("source", facts.get("source")),
        ("licence of the weights", facts.get("licence")),
        ("weights (SHA-256)", facts.get("weights_hash")),
        *((f"{name} version", number) for name, number in run.get("versions", {}).items()),
    ]


def _images(config: Mapping[str, Any]) -> Facts:
    cfg = config["pretrained_cfg"]
    return [
        ("size", "x".join(map(str, cfg["input_size"][-2:]))),
        ("share of the resized side that is cut out", cfg["crop_pct"]),
        ("interpolation", cfg["interpolation"]),
        ("mean", ", ".join(f"{value:.4f}" for value in cfg["mean"])),
        ("std", ", ".join(f"{value:.4f}" for value in cfg["std"])),
    ]


def _usage(source: Source, config: Mapping[str, Any], files: Sequence[str]) -> str:
    ours = type(source.model).__module__.startswith("tutelage.")
    text = TIMM.substitute(name=config["architecture"], known=KNOWN if ours else "")
    return text + "".join(usage for file, usage in PROGRAMS.items() if file in files)


def _listed(facts: Facts) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts if value is not None) + "\n"
