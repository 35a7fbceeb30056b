"""What the baselines share: experts dealt out over layers, and the room they have in VRAM."""

from coxcompile.hardware import HardwareSpec, Processor
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import ExpertSplit


def gpu_of(policy: str, hardware: HardwareSpec) -> Processor:
    """The machine's GPU.

    Raises:
        ValueError: it has none; the message names the policy and the remedy.
    """
    if hardware.gpu is None:
        raise ValueError(
            f"policy {policy} needs a GPU, but {hardware.name} has none; use policy cpu-only"
        )
    return hardware.gpu


def spread(model: ModelSpec, resident: int) -> tuple[ExpertSplit, ...]:
    """``resident`` experts dealt evenly over the MoE layers, all others migrating.

    Layers differ by one at most, so no share is lost to rounding: int(E · share) in each layer
    makes nothing resident for MoE-Lightning's published L4 policy (0.056 of 8 experts).
    """
    layers = model.moe_layers
    counts = [
        (layer + 1) * resident // layers - layer * resident // layers for layer in range(layers)
    ]
    return tuple(
        ExpertSplit(resident=count, migrating=model.experts - count, cpu=0) for count in counts
    )


def layer_ahead_slots(model: ModelSpec, resident: int) -> int:
    """Slots of FlexGen and MoE-Lightning, which hold one layer and the next: 2·w_i·(1 - w_g)."""
    return 2 * (model.experts - resident // max(model.moe_layers, 1))


def fill(model: ModelSpec, room: int, most_slots: int) -> tuple[int, int]:
    """(resident experts of all layers together, staging slots) for a VRAM with room for ``room``.

    At most ``most_slots`` slots are set aside, and none that no layer can use.
    """
    everything = model.moe_layers * model.experts
    if room >= everything:
        return everything, 0
    slots = min(most_slots, room)
    slots = min(slots, model.experts - (room - slots) // max(model.moe_layers, 1))
    return room - slots, slots
