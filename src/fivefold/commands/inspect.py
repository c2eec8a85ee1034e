"""Look at the singular values of a model's layers: a table, a picture and the numbers as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONAL = "model"
_PANELS = {"attn": "attention", "mlp": "feed-forward", None: "others"}


@dataclass
class InspectSettings:
    """What to look at."""

    model: str
    """Folder or Hub id of a model, low rank or dense."""
    output_dir: str = "inspect"
    """Folder for singular_values.png and inspect.json, made if need be."""


def run(settings: InspectSettings, *, dry_run: bool) -> None:
    """Print the table, then write the picture and the numbers."""
    folder = Path(settings.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder} is a file; name a folder.")

    from fivefold.models.load import load_model
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint

    if (Path(settings.model) / MANIFEST).is_file():
        verify_checkpoint(Path(settings.model))
    model = load_model(settings.model)
    picture, numbers = folder / "singular_values.png", folder / "inspect.json"
    if dry_run:
        print(f"would write {picture} and {numbers}")
        return
    layers = _measure(model)
    _print_table(layers)
    folder.mkdir(parents=True, exist_ok=True)
    _draw(layers, picture)
    fresh = numbers.with_name(f".{numbers.name}.writing")
    fresh.write_text(json.dumps({"model": settings.model, "layers": layers}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(numbers)
    print(f"wrote {picture} and {numbers}")


def _measure(model: "PreTrainedModel") -> list[dict[str, Any]]:
    """One entry a layer, in the model's order; numbers that are not finite are None."""
    from rich.console import Console
    from rich.progress import track

    from fivefold.lowrank.convert import factor_pairs
    from fivefold.lowrank.spectrum import effective_rank, singular_values, stable_rank
    from fivefold.lowrank.targets import kind_of, linear_layers, name_patterns

    patterns = (getattr(model.config, "low_rank", None) or {}).get("targets") or name_patterns(model)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    found = sorted([*factor_pairs(model), *linear_layers(model).items()], key=lambda pair: order[pair[0]])
    layers = []
    for name, layer in track(found, "singular values", console=Console(stderr=True), transient=True):
        values = singular_values(layer)
        smallest = values[-1].item()
        numbers = {
            "largest": values[0].item(),
            "smallest": smallest,
            "condition_number": values[0].item() / smallest if smallest else math.inf,
            "effective_rank": effective_rank(values),
            "stable_rank": stable_rank(values),
        }
        layers.append(
            {
                "name": name,
                "kind": kind_of(name, patterns),
                "out": layer.out_features,
                "in": layer.in_features,
                "rank": len(values),
                **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
                "singular_values": values.tolist() if values.isfinite().all() else None,
            }
        )
    return layers


def _print_table(layers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", box=None, header_style="bold")
    for title in ("out x in", "rank", "largest", "smallest", "condition", "effective rank"):
        table.add_column(title, justify="right", no_wrap=True)
    for layer in layers:
        measured = [layer[key] for key in ("largest", "smallest", "condition_number", "effective_rank")]
        formats = (".3g", ".3g", ".1e", ".1f")
        texts = ["-" if value is None else format(value, form) for value, form in zip(measured, formats, strict=True)]
        table.add_row(layer["name"], f"{layer['out']} x {layer['in']}", str(layer["rank"]), *texts)
    console = Console()
    # A file or a pipe has no width to respect; cut names would be of no use there.
    Console(width=None if console.is_terminal else 160).print(table)


def _draw(layers: list[dict[str, Any]], path: Path) -> None:
    """One line a layer, coloured by the layer's own name, such as q; attention and feed-forward layers apart."""
    from matplotlib.figure import Figure

    from fivefold.report.curves import COLOURS

    panels = {kind: [layer for layer in layers if layer["kind"] == kind] for kind in _PANELS}
    panels = {kind: members for kind, members in panels.items() if members}
    figure = Figure(figsize=(5.2 * max(len(panels), 1), 4), dpi=150, layout="constrained")
    figure.suptitle("Singular values", x=0.01, ha="left", fontsize=13, fontweight="bold")
    for index, (kind, members) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        colours: dict[str, str] = {}
        for layer in members:
            own_name = layer["name"].rpartition(".")[2]
            label = None if own_name in colours else own_name
            colour = colours.setdefault(own_name, COLOURS[len(colours) % len(COLOURS)])
            values = [value if value > 0 else math.nan for value in layer["singular_values"] or []]
            axes.plot(range(1, len(values) + 1), values, color=colour, alpha=0.6, linewidth=1, label=label)
        axes.set_yscale("log")
        axes.set_title(_PANELS[kind], loc="left", fontsize=11)
        axes.set_xlabel("number, from large to small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.legend(frameon=False, fontsize=9)
    fresh = path.with_name(f".{path.name}.writing")
    figure.savefig(fresh, format="png")
    fresh.replace(path)
