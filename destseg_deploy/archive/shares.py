"""How a cluster is divided among workers, so that they do not fight for cores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from destseg_deploy.archive.answers import Work
from destseg_deploy.cluster.place import refuse_lack, takes_gpu
from destseg_deploy.options import ServerOptions, TensorRtOptions

THREADS = 4
"""CPU threads of a worker. Within an image, a network of this size gains little from more."""


@dataclass(frozen=True)
class Share:
    """What each worker gets.

    Attributes:
        workers: Number of them.
        threads: Of each one's back end; 0 on a GPU.
        cpus: Reserved for each; a fraction where workers share a core.
        gpus: As ``cpus``.
    """

    workers: int
    threads: int
    cpus: float
    gpus: float = 0.0


def divide(cpus: float, gpus: float, *, cuda: bool, workers: int = 0, threads: int = 0) -> Share:
    """Divide a cluster.

    Args:
        cpus: Of all machines together, and so are ``gpus``.
        gpus: NVIDIA's.
        cuda: Whether the model runs on a GPU.
        workers: 0 for as many as fill the cluster.
        threads: Of each worker; 0 for its share of the CPUs.

    Raises:
        BackendError: If there is no GPU for what runs on one.
    """
    if cuda:
        refuse_lack(gpus)
        workers = workers or int(gpus)
        return Share(workers, 0, _part(min(1, cpus / workers)), _part(min(1, gpus / workers)))
    if not workers:
        threads = threads or max(1, min(THREADS, int(cpus)))
        workers = max(1, int(cpus // threads))
    threads = threads or max(1, int(cpus // workers))
    return Share(workers, threads, _part(min(threads, cpus / workers)))


def _part(amount: float) -> float:
    """Round down to what Ray takes: whole numbers above 1, and four digits below."""
    return float(int(amount)) if amount >= 1 else int(amount * 1e4) / 1e4


def runs_on_cuda(work: Work) -> bool:
    """Tell whether workers need a GPU; the work is settled.

    Raises:
        BackendError: If Ray cannot give what the device names.
    """
    return work.device is not None and takes_gpu(work.device)


def for_worker(work: Work, share: Share) -> Work:
    """Return what a worker runs: an absolute path, and no more threads than its share."""
    options, fixed = work.options, (TensorRtOptions, ServerOptions)
    if share.threads and options is not None and not isinstance(options, fixed):
        options = replace(options, threads=share.threads)
    return replace(work, artifact=work.artifact.absolute(), options=options)


def asked_threads(work: Work) -> int:
    """Return the threads that were asked for; 0 where the share decides."""
    return int(getattr(work.options, "threads", 0))
