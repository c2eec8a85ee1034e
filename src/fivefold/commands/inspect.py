"""Look at the singular values and effective ranks of a model's layers: a table, a picture and the numbers as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedModel

POSITIONAL = "model"
_PANELS = {"attn": "attention", "mlp": "feed-forward", None: "others"}
_DASHES = ("-", "--", ":", "-.")


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
    """Singular values, a line a layer, above effective ranks by depth; attention and feed-forward layers apart."""
    from matplotlib.figure import Figure

    from fivefold.report.curves import COLOURS

    panels = {kind: [layer for layer in layers if layer["kind"] == kind] for kind in _PANELS}
    panels = {kind: members for kind, members in panels.items() if members}
    figure = Figure(figsize=(5.2 * max(len(panels), 1), 7.6), dpi=150, layout="constrained")
    for column, (kind, members) in enumerate(panels.items(), start=1):
        own_names = dict.fromkeys(_own_name(layer) for layer in members)
        colours = {own_name: COLOURS[index % len(COLOURS)] for index, own_name in enumerate(own_names)}
        values, ranks = (figure.add_subplot(2, len(panels), row * len(panels) + column) for row in (0, 1))
        _draw_values(values, members, colours)
        _draw_ranks(ranks, members, colours)
        for axes, what in ((values, "Singular values"), (ranks, "Effective rank")):
            axes.set_title(f"{what}, {_PANELS[kind]}", loc="left", fontsize=11)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axes.legend(frameon=False, fontsize=9)
    fresh = path.with_name(f".{path.name}.writing")
    figure.savefig(fresh, format="png")
    fresh.replace(path)


def _draw_values(axes: "Axes", layers: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """One line a layer, coloured by the layer's own name, such as q."""
    unnamed = dict(colours)
    for layer in layers:
        own_name = _own_name(layer)
        label = own_name if unnamed.pop(own_name, None) else None
        values = [value if value > 0 else math.nan for value in layer["singular_values"] or []]
        axes.plot(range(1, len(values) + 1), values, color=colours[own_name], alpha=0.6, linewidth=1, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("number, from large to small")


def _draw_ranks(axes: "Axes", layers: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """One line over the blocks for each kind of layer: coloured by its own name, dashed by the place it has in a block.

    A place is what a layer's name says but for numbers, such as decoder ... EncDecAttention.
    """
    from matplotlib.ticker import MaxNLocator

    lines: dict[tuple[str, ...], dict[str, dict[int, float]]] = {}
    for layer in layers:
        *path, own_name = layer["name"].split(".")
        place = tuple(part for part in path if not part.isdecimal())
        block = next((int(part) for part in path if part.isdecimal()), 0)
        rank = layer["effective_rank"]
        lines.setdefault(place, {}).setdefault(own_name, {})[block] = math.nan if rank is None else rank
    shared = set.intersection(*map(set, lines))
    unnamed = dict(colours)
    for index, (place, by_name) in enumerate(lines.items()):
        dashes = _DASHES[index % len(_DASHES)]
        for own_name, ranks in by_name.items():
            label = own_name if unnamed.pop(own_name, None) else None
            axes.plot(
                list(ranks),
                list(ranks.values()),
                dashes,
                color=colours[own_name],
                marker="o",
                markersize=3,
                label=label,
            )
        if words := [word for word in place if word not in shared]:
            axes.plot([], [], dashes, color="#444444", label=" ".join(words))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _own_name(layer: dict[str, Any]) -> str:
    return layer["name"].rpartition(".")[2]
