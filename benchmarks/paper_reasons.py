"""Sentences that explain a predicted ratio of two plans by what each of them is bound by."""

from collections.abc import Sequence

from paper_outcomes import NAMES, STAGES, Outcome, StageOutcome

NEGLIGIBLE = 0.1
"""A stage with less than this share of both plans' time explains nothing."""
ALIKE = 0.15
"""Stages that take the same time within this share are alike."""
BOUND = 0.8
"""A resource that works at least this share of a stage's time binds it."""


def why(ratio: float, bounds: Sequence[float], ours: Outcome, theirs: Outcome) -> str:
    """Why ``ours`` is predicted to be ``ratio`` times as fast as ``theirs``, outside ``bounds``."""
    low, high = bounds
    side = "below" if ratio < low else "above"
    return f"{ratio:.2f}x, {side} the paper's {low}-{high}x. {comparison(ours, theirs)}"


def comparison(ours: Outcome, theirs: Outcome) -> str:
    """What makes the stages differ, the one that takes longer first."""
    sentences = []
    for stage in sorted(STAGES, key=lambda name: -theirs.stage(name).seconds):
        mine, other = ours.stage(stage), theirs.stage(stage)
        shares = (mine.seconds / ours.seconds, other.seconds / theirs.seconds)
        if max(shares) < NEGLIGIBLE:
            continue
        sentences.append(
            f"{stage.capitalize()} ({shares[1]:.0%} of {theirs.policy}'s time, {shares[0]:.0%} of "
            f"{ours.policy}'s) is {other.seconds / mine.seconds:.2f}x as fast: "
            f"{_binding(mine, other, ours.policy, theirs.policy)}"
            f"{_experts(mine, other, ours.policy, theirs.policy)}."
        )
    return " ".join(sentences)


def _binding(mine: StageOutcome, other: StageOutcome, my_name: str, other_name: str) -> str:
    if mine.busiest != other.busiest:
        return (
            f"{my_name} {_load(mine)}, {other_name} {_load(other)}"
            f"{_attention(mine, other, my_name, other_name)}"
        )
    more = other.busiest_seconds / mine.busiest_seconds
    if abs(more - 1) <= ALIKE:
        amount = f"has nearly the same work in both ({mine.busiest_seconds:.3g} s and "
        amount += f"{other.busiest_seconds:.3g} s){_waiting(mine, other, my_name, other_name)}"
    else:
        amount = f"works {mine.busiest_seconds:.3g} s for {my_name} and "
        amount += f"{other.busiest_seconds:.3g} s for {other_name}"
    return (
        f"{NAMES[mine.busiest]} is the busiest in both and {amount}, most of it "
        f"{_chief(mine, other)}"
        f"{_attention(mine, other, my_name, other_name)}"
    )


def _waiting(mine: StageOutcome, other: StageOutcome, my_name: str, other_name: str) -> str:
    if abs(other.seconds / mine.seconds - 1) <= ALIKE:
        return ""
    shares = [f"{stage.busy[stage.busiest]:.0%}" for stage in (mine, other)]
    return f", busy {shares[0]} of {my_name}'s time and {shares[1]} of {other_name}'s"


def _chief(mine: StageOutcome, other: StageOutcome) -> str:
    if mine.chief_work == other.chief_work:
        return mine.chief_work
    return f"{mine.chief_work} in one and {other.chief_work} in the other"


def _load(stage: StageOutcome) -> str:
    share = stage.busy[stage.busiest]
    bound = "is bound by" if share >= BOUND else "waits in turns; its busiest is"
    return (
        f"{bound} {NAMES[stage.busiest]} (busy {share:.0%} of the time, "
        f"{stage.chief_share:.0%} of that with {stage.chief_work})"
    )


def _attention(mine: StageOutcome, other: StageOutcome, my_name: str, other_name: str) -> str:
    if mine.attention == other.attention:
        return ""
    return (
        f"; attention is on {NAMES[mine.attention]} in {my_name} and on {NAMES[other.attention]} "
        f"in {other_name}"
    )


def _experts(mine: StageOutcome, other: StageOutcome, my_name: str, other_name: str) -> str:
    if abs(other.seconds / mine.seconds - 1) <= ALIKE:
        return ""
    return f"; {my_name} {_split(mine)}, {other_name} {_split(other)}"


def _split(stage: StageOutcome) -> str:
    return (
        f"has {stage.resident:.4g} experts a layer resident, fetches {stage.migrating:.4g} and "
        f"leaves {stage.cpu:.4g} to the CPU (hit ratio {stage.hit_ratio:.0%}, "
        f"{stage.expert_rows:.3g} tokens an expert at a time)"
    )
