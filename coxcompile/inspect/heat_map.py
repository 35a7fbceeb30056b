"""An activation map as a picture: layers down, experts across."""

from pathlib import Path

from coxcompile.planner.activation_map import ActivationMap

_LEGIBLE_LAYERS = 64


def draw_heat_map(activation_map: ActivationMap, path: Path) -> None:
    """Draw each expert's share of its layer's choices, as a multiple of an even share 1/E.

    Args:
        activation_map: what to draw.
        path: the picture; its suffix chooses the format (.png, .svg, .pdf).

    Raises:
        ValueError: the suffix is no format that matplotlib writes.
    """
    # Imported here: nothing else of the package needs matplotlib. Figure is not pyplot's, so it is
    # drawn by Agg and touches no display and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = activation_map.counts
    choices = counts.sum(axis=1, keepdims=True).clip(min=1)
    layers, experts = counts.shape
    figure = Figure(figsize=(3 + experts / 8, 1.8 + layers / 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        counts / choices * experts, aspect="auto", cmap="magma", vmin=0, interpolation="nearest"
    )
    if layers <= _LEGIBLE_LAYERS:
        axes.set_yticks(range(layers), activation_map.layers, fontsize=7)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_title(
        f"{activation_map.model}: {activation_map.strategy}, {activation_map.tokens} tokens"
    )
    figure.colorbar(image, label="share of choices / even share")
    figure.savefig(path, dpi=150)
