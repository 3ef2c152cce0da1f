"""A real Triton server, which ``make test-triton`` fetches: HTTP and gRPC, batches, an update.

NVIDIA's wheel holds the server with its Python back end, and not the one of ONNX Runtime. So
``model.py`` runs the file that the native back end would load; all else of the configuration is
what ``destseg export repository`` writes.
"""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy import BackendError, ModelSpec, Predictor, ServerOptions, load
from destseg_deploy.spec import FileRecord

TRITON = os.environ.get("DESTSEG_TRITON")
"""Folder with ``server``, the unpacked wheel, and ``venv`` with numpy before 2 and onnxruntime."""

if TRITON is None:
    pytest.skip("needs a Triton server: make test-triton", allow_module_level=True)

KINDS = ("http", "grpc")
CLIENTS, SECONDS = 50, float(os.environ.get("DESTSEG_TRITON_SECONDS", "120"))

MODEL = """
import sys
sys.path.insert(0, {site!r})
from pathlib import Path
import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        one = ort.SessionOptions()
        one.intra_op_num_threads = 1
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = ort.InferenceSession(folder / "model.onnx", one)
        self.log = open({log!r}, "a", buffering=1)

    def execute(self, requests):
        frames = [pb.get_input_tensor_by_name(one, "image").as_numpy() for one in requests]
        print(len(requests), file=self.log)
        given = {{"image": np.concatenate(frames)}}
        maps, scores = self.session.run(["anomaly_map", "score"], given)
        ends = np.cumsum([len(one) for one in frames])[:-1]
        return [
            pb.InferenceResponse([pb.Tensor("anomaly_map", m), pb.Tensor("score", s)])
            for m, s in zip(np.split(maps, ends), np.split(scores, ends))
        ]
"""


class Triton:
    """A running server over a repository that it polls every second."""

    def __init__(self, folder: Path, artifact: Path) -> None:
        self.models, self.log, self.artifact = folder / "models", folder / "batches", artifact
        self.put()
        root = Path(TRITON) / "server/pytriton/tritonserver"
        with (
            socket.create_server(("127.0.0.1", 0)) as one,
            socket.create_server(("127.0.0.1", 0)) as two,
        ):
            ports = [str(taken.getsockname()[1]) for taken in (one, two)]
        self.url, self.grpc = (f"{k}://127.0.0.1:{p}" for k, p in zip(KINDS, ports, strict=True))
        self.said = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [
                *(root / "bin/tritonserver", "--model-repository", self.models),
                *("--backend-directory", root / "backends", "--http-port", ports[0]),
                *("--grpc-port", ports[1], "--allow-metrics", "false"),
                *("--model-control-mode", "poll", "--repository-poll-secs", "1"),
            ],
            stdout=self.said,
            stderr=self.said,
        )
        self.wait("/v2/models/cable/ready")

    def put(self) -> None:
        """Write the next version as the command does, but with the Python back end."""
        from destseg_export import repository
        from destseg_export.serving import Serving

        site = next((Path(TRITON) / "venv").glob("lib/python*/site-packages"))
        fill = repository._fill
        describe = repository.pbtxt

        def with_model(version: Path, artifact: Path) -> None:
            fill(version, artifact)
            (version / "model.py").write_text(MODEL.format(site=str(site), log=str(self.log)))

        def python(config: dict) -> str:
            del config["default_model_filename"]
            return describe({**config, "backend": "python"})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repository, "_fill", with_model)
            patch.setattr(repository, "pbtxt", python)
            serving = Serving(model="cable", any_size=True)
            repository.write_repository(self.artifact, self.models, serving)

    def wait(self, path: str) -> None:
        for _ in range(240):
            try:
                with urllib.request.urlopen(self.url + path, timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, Path(self.said.name).read_text()[-3000:]
                time.sleep(0.5)
        raise AssertionError(Path(self.said.name).read_text()[-3000:])

    def open(self, kind: str) -> Predictor:
        url = self.grpc if kind == "grpc" else self.url
        return load(self.artifact, options=ServerOptions(url, "cable", 120))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.said.close()


@pytest.fixture(scope="module")
def triton(onnx_artifact, tmp_path_factory):
    server = Triton(tmp_path_factory.mktemp("triton"), onnx_artifact)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)


def test_the_configuration_is_read_as_it_was_meant(triton):
    with urllib.request.urlopen(f"{triton.url}/v2/models/cable/config") as answer:
        config = json.load(answer)
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"]["preferred_batch_size"] == [2, 4]
    assert config["output"][1]["reshape"] == {"shape": []}
    assert config["parameters"]["category"] == {"string_value": "cable"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_answers_as_the_file_does(triton, frames, kind):
    with triton.open(kind) as there, load(triton.artifact) as here:
        found, expected = there(list(frames)), here(list(frames))
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5)
    np.testing.assert_allclose(found.score, expected.score, atol=1e-5)


def test_many_clients_and_an_update_see_no_wrong_answer(triton, frames):
    with load(triton.artifact) as here:
        expected = here(list(frames)).score
    triton.log.write_text("")
    seen: Counter[tuple[str, str]] = Counter()
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    end = time.monotonic() + SECONDS

    def client(seed: int, kind: str, there: Predictor) -> None:
        chance = random.Random(seed)
        while (start := time.monotonic()) < end:
            i = chance.randrange(len(frames))
            try:
                score = there(frames[i]).score[0]
            except BackendError as error:
                seen[kind, str(error)] += 1
            else:
                times[kind].append(time.monotonic() - start)
                seen[kind, "right" if abs(score - expected[i]) < 1e-5 else "wrong"] += 1

    with triton.open("http") as http, triton.open("grpc") as grpc:
        open_ones = [("http", http), ("grpc", grpc)]
        threads = [
            threading.Thread(target=client, args=(i, *open_ones[i % 2])) for i in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 3)
        before = sum(seen.values())
        triton.put()
        for thread in threads:
            thread.join()
    requests = [int(line) for line in triton.log.read_text().split()]
    for kind, all_times in times.items():
        print(
            f"{kind}: {seen[kind, 'right']} answers, median {np.median(all_times):.2f} s, "
            f"p99 {np.quantile(all_times, 0.99):.2f} s"
        )
    print(f"{np.mean(requests):.2f} requests a batch, {before} answers before the update")
    assert set(seen) == {(kind, "right") for kind in KINDS}
    assert 0 < before < sum(seen.values()), "control: the update came under load"
    assert np.ptp(expected) > 1e-3, "control: another frame's score is not taken for right"
    assert max(requests) > 1, "frames of several clients make a batch"
    loaded = re.findall(r"successfully loaded 'cable'", Path(triton.said.name).read_text())
    assert len(loaded) > 1, "control: the update was seen"


@pytest.mark.parametrize("kind", KINDS)
def test_another_artifact_under_this_name_is_refused(triton, tmp_path, kind):
    copy = Path(shutil.copy(triton.artifact, tmp_path / "cable-fp32.onnx"))
    text = triton.artifact.with_suffix(".json").read_text()
    copy.with_suffix(".json").write_text(text)
    copy.write_bytes(b"other")
    replace(ModelSpec.read(copy), artifact=FileRecord.of(copy)).write(copy)
    with pytest.raises(BackendError, match="serves another artifact"):
        load(copy, options=ServerOptions(triton.grpc if kind == "grpc" else triton.url, "cable"))
