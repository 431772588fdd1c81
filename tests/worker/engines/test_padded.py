# ruff: noqa: E402 - without torch, what follows cannot be imported
# pyright: reportMissingImports=false
from __future__ import annotations

from extras import require

require("torch")
require("transformers")

import pytest
import torch

from genpool.protocol.errors import EngineDead
from genpool.worker.engines.completion import Sampling
from genpool.worker.engines.padded import Draw, left_padded, translated

PROBABILITIES = [0.6, 0.3, 0.1]


def sampling(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, penalty: float = 1.0) -> Sampling:
    return Sampling(8, temperature, top_p, top_k, penalty, ())


def draws(given: Sampling, seeds: list[int]) -> list[int]:
    """What is drawn by each seed from PROBABILITIES."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scores = torch.tensor([PROBABILITIES] * len(seeds)).log()
    ids = torch.zeros((len(seeds), 1), dtype=torch.long)
    return Draw(given, torch.ones_like(ids), generators)(ids, scores).argmax(dim=1).tolist()


def shares(drawn: list[int]) -> list[float]:
    return [drawn.count(token) / len(drawn) for token in range(len(PROBABILITIES))]


def test_draws_follow_the_models_probabilities() -> None:
    assert shares(draws(sampling(), list(range(4000)))) == pytest.approx(PROBABILITIES, abs=0.03)


def test_temperature_top_p_and_top_k_shape_the_draws() -> None:
    seeds = list(range(2000))
    squared = [one**2 for one in PROBABILITIES]
    assert shares(draws(sampling(temperature=0.5), seeds)) == pytest.approx(
        [one / sum(squared) for one in squared], abs=0.04
    )
    assert shares(draws(sampling(top_k=2), seeds)) == pytest.approx([2 / 3, 1 / 3, 0], abs=0.04)
    assert shares(draws(sampling(top_p=0.5), seeds)) == [1, 0, 0]


def test_a_seed_draws_the_same_whatever_is_beside_it() -> None:
    alone = [draws(sampling(), [seed])[0] for seed in range(20)]
    assert draws(sampling(), list(range(20))) == alone
    assert len(set(alone)) > 1


def test_temperature_0_takes_the_likeliest() -> None:
    assert draws(sampling(temperature=0), list(range(50))) == [0] * 50


def test_padding_is_not_penalised() -> None:
    ids, mask = left_padded([[1, 2], [1]], 0, "cpu")
    assert ids.tolist() == [[1, 2], [0, 1]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    ids = torch.cat([ids, torch.tensor([[3], [3]])], dim=1)
    scores = Draw(sampling(temperature=0, penalty=2), mask, [])(ids, torch.full((2, 5), 4.0))
    assert scores.tolist() == [[4, 2, 2, 2, 4], [4, 2, 4, 2, 4]]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), MemoryError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MemoryError),
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be …"), EngineDead),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), EngineDead),
        (RuntimeError("the size of tensor a (3) must match"), RuntimeError),
    ],
)
def test_what_an_error_of_torch_means(error: RuntimeError, kind: type[Exception]) -> None:
    meaning = translated(error)
    assert type(meaning) is kind
    assert str(meaning) == str(error).partition("\n")[0]
