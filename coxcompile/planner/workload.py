"""What is to be run: how many sequences, how long they come in, how long they go out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LengthGroup:
    """``count`` sequences of ``input_tokens`` tokens that each get ``output_tokens`` new ones."""

    count: int
    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        for name in ("count", "input_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A batch as a histogram of lengths.

    Prefill yields each sequence's first output token; every further one is a decoding step.
    """

    groups: tuple[LengthGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("groups is empty, but a workload needs sequences")

    @property
    def batch(self) -> int:
        """Sequences (B)."""
        return sum(group.count for group in self.groups)

    @property
    def input_tokens(self) -> int:
        """Prompt tokens of all sequences together."""
        return sum(group.count * group.input_tokens for group in self.groups)

    @property
    def output_tokens(self) -> int:
        """Generated tokens of all sequences together."""
        return sum(group.count * group.output_tokens for group in self.groups)

    @property
    def longest_output(self) -> int:
        """Generated tokens of the longest sequence."""
        return max(group.output_tokens for group in self.groups)

    @property
    def causal_pairs(self) -> float:
        """Pairs of query and attended position in prefill: half of each prompt's square."""
        return sum(group.count * group.input_tokens**2 / 2 for group in self.groups)

    @property
    def decoded_tokens(self) -> int:
        """Tokens that decoding steps produce, all sequences together."""
        return sum(group.count * (group.output_tokens - 1) for group in self.groups)

    @property
    def decoded_pairs(self) -> float:
        """Positions attended in all decoding steps together: the cache grows by one a step."""
        return sum(
            group.count * (group.output_tokens - 1) * (group.input_tokens + group.output_tokens / 2)
            for group in self.groups
        )

    @property
    def cached_tokens(self) -> int:
        """Cache positions that all sequences together need in the end."""
        return sum(
            group.count * (group.input_tokens + group.output_tokens) for group in self.groups
        )


def uniform_workload(batch: int, input_tokens: int, output_tokens: int) -> Workload:
    """``batch`` sequences of one length."""
    return Workload(
        groups=(LengthGroup(count=batch, input_tokens=input_tokens, output_tokens=output_tokens),)
    )
