"""How much memory the kernels take beside their arguments."""


def workspace_bytes(
    choices: int, experts: int, hidden: int, intermediate: int, element_bytes: int
) -> int:
    """A bound on the bytes that ``experts.run_experts_`` holds at once.

    Each choice's intermediate result and contribution, and integers for its routing.

    Args:
        choices: tokens times top_k.
        experts: E, those that are not here too.
        hidden: H.
        intermediate: I.
        element_bytes: of hidden_states' dtype.
    """
    padded_experts = max(2 * experts, 16)
    sorted_choices, tiles = choices, 2 * (choices + experts)
    counts = (choices // 128 + 1) * padded_experts
    integers = sorted_choices + experts + tiles + 1 + counts
    addresses = 6 * experts
    return choices * (hidden + intermediate) * element_bytes + 4 * integers + 8 * addresses
