"""Text of this machine: disjoint splits, the same every time, token ids of the asked shape."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from local_text import END_OF_DOCUMENT, FEWEST_BYTES, SPLIT_BYTES, domains, read, sample

EXAMPLES = Path(__file__).parents[1] / "examples"


def documents(domain: str, split: str) -> set[bytes]:
    return set(bytes(read(domain, split).numpy()).split(bytes([END_OF_DOCUMENT]))) - {b""}


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=EXAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_what_the_virtual_environment_itself_brings_is_there() -> None:
    assert {"python", "c headers", "licences", "documentation"} <= set(domains())


def test_splits_share_neither_files_nor_documents() -> None:
    for domain, files in domains().items():
        assert not set(files["train"]) & set(files["held-out"]), domain
        assert not documents(domain, "train") & documents(domain, "held-out"), domain
        for split in files:
            assert FEWEST_BYTES[split] <= len(read(domain, split)) <= SPLIT_BYTES[split], domain


def test_a_domain_with_too_little_text_is_left_out_in_one_line() -> None:
    program = (
        "import local_text; python = local_text._SOURCES['python'];"
        "local_text._SOURCES = {'python': python, 'nothing': []}; print(*local_text.domains())"
    )
    finished = run(program)
    assert finished.stdout == "python\n"
    assert finished.stderr == "nothing: too little text on this machine, left out\n"


def test_another_process_reads_the_same() -> None:
    program = (
        "from hashlib import sha256; from local_text import read;"
        "print(sha256(read('documentation', 'held-out').numpy()).hexdigest(), end='')"
    )
    here = sha256(read("documentation", "held-out").numpy()).hexdigest()
    assert run(program, PYTHONHASHSEED="1").stdout == here


def test_sample_gives_windows_of_the_text() -> None:
    ids = sample("python", "held-out", 5, 40, torch.Generator().manual_seed(0))
    assert ids.shape == (5, 40)
    assert ids.dtype == torch.int64
    text = bytes(read("python", "held-out").numpy())
    assert all(bytes(window.tolist()) in text for window in ids)


def test_sample_follows_the_generator() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return sample("python", "train", 4, 64, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_a_window_may_be_the_whole_text() -> None:
    text = read("documentation", "held-out")
    ids = sample("documentation", "held-out", 1, len(text), torch.Generator())
    assert torch.equal(ids[0], text.long())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("latin", "train", 1, 8), "domain is 'latin'.*python"),
        (("python", "test", 1, 8), "split is 'test'.*held-out"),
        (("python", "train", 0, 8), "sequences is 0"),
        (("python", "train", 1, 0), "length is 0"),
        (("python", "train", 1, 1 << 30), "length is 1073741824"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    arguments: tuple[str, str, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample(*arguments, torch.Generator())
