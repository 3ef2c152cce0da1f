"""Distances to the nearest row of a memory bank, by brute force."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from destseg_deploy.errors import BackendError

CHUNK_BYTES = 256 << 20
"""Of the matrix of queries and rows that is held at a time."""

Search = Callable[[Tensor], Tensor]
"""Maps queries, float32 (M, C), to squared Euclidean distances, float32 (M,)."""


def open_search(name: str, bank: Tensor) -> Search:
    """Make a search over a bank.

    Args:
        name: ``gemm``, or ``faiss`` where it is installed.
        bank: float32 (rows, C).

    Raises:
        BackendError: If there is no such search, or FAISS is not installed.
    """
    searches: dict[str, Callable[[Tensor], Search]] = {"gemm": GemmSearch, "faiss": FaissSearch}
    if name not in searches:
        raise BackendError(f"search {name!r}: expected one of {', '.join(searches)}.")
    return searches[name](bank)


class GemmSearch:
    """One matrix product finds the nearest row; its distance is then taken from the difference.

    |q - b|^2 = |q|^2 - 2 q.b + |b|^2 loses the digits that |q|^2 and the rest have in common, and
    its rounding depends on the batch; the row it finds is right to that rounding, and the distance
    to that row does not suffer from it.
    """

    def __init__(self, bank: Tensor) -> None:
        """Keep the bank, and half of its rows' squared lengths."""
        self._bank = bank
        self._halves = bank.square().sum(dim=1) / 2

    def __call__(self, queries: Tensor) -> Tensor:
        """Return squared distances; as many queries at a time as fit ``CHUNK_BYTES``."""
        count = max(1, CHUNK_BYTES // (4 * len(self._bank)))
        return torch.cat([self._nearest(part) for part in torch.split(queries, count)])

    def _nearest(self, queries: Tensor) -> Tensor:
        closeness = torch.addmm(self._halves, queries, self._bank.T, beta=-1)
        return (queries - self._bank[closeness.argmax(dim=1)]).square().sum(dim=1)


class FaissSearch:
    """FAISS's exact index, ``IndexFlatL2``, on the host: queries on a GPU are copied there."""

    def __init__(self, bank: Tensor) -> None:
        """Fill an index.

        Raises:
            BackendError: If FAISS is not installed.
        """
        try:
            faiss = import_module("faiss")  # optional and untyped
        except ModuleNotFoundError as error:
            raise BackendError(
                "search 'faiss': FAISS is not installed. pip install 'destseg-deploy[faiss]'"
            ) from error
        self._index = faiss.IndexFlatL2(bank.shape[1])
        self._index.add(bank.cpu().numpy())

    def __call__(self, queries: Tensor) -> Tensor:
        """Return squared distances on the device of the queries."""
        distances, _ = self._index.search(queries.cpu().numpy(), 1)
        return torch.from_numpy(distances[:, 0]).to(queries.device)
