# Everything a newcomer needs: `make demo` and `make test`. Both make their own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip finds torch. Empty takes pip's own settings; the CPU build of PyTorch's index is smaller:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=

.PHONY: install builders demo gpu docs test test-deploy test-bench test-cpp test-export test-house test-ray test-arm64 test-gcc9 test-triton lint types house format clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[all,dev]'
	touch $@

# What builds and runs on a CPU beside ONNX Runtime: TensorRT-RTX (builds engines without a GPU),
# OpenVINO, and its quantiser NNCF, with which ours is compared; and the bindings of three releases of
# TensorRT, whose names the tests hold ours against. The tests that need them skip where they are absent.
BINDINGS := tensorrt_cu12_bindings==10.3.0 tensorrt_cu13_bindings==10.16.1.11 tensorrt_cu13_bindings==11.4.0.106
# The oldest ONNX Runtime that cpp/ supports, and the pinned one, whose wheels for Windows and ARM run under Wine and qemu.
OLDEST_ORT := onnxruntime==1.20.1
PINNED_ORT := onnxruntime==1.32.0
builders: $(VENV)/.builders

$(VENV)/.builders: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[all,dev,rtx,openvino,nncf]'
	for release in $(BINDINGS); do $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/bindings $$release || exit 1; done
	-$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/onnxruntimes $(OLDEST_ORT)
	-$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/onnxruntimes --platform win_amd64 --python-version 3.11 --only-binary :all: $(PINNED_ORT)
	-sh cpp/get-onnxruntime-headers.sh $(VENV)/include
	touch $@

# Everything lies in demo/, made anew each time. The teacher's ImageNet weights are the file TEACHER, or
# torchvision's; without both they are random, and a note says so.
TEACHER ?= ../shared/weights/resnet18_imagenet1k_v1_layers1-3.safetensors
demo: install
	rm -rf demo
	$(BIN)/destseg-sample --output demo/data
	$(BIN)/destseg-train --category cable --data demo/data --output demo/artifacts --preset quick --teacher auto $(if $(wildcard $(TEACHER)),--teacher-weights $(TEACHER))
	$(BIN)/destseg-export --checkpoint demo/artifacts/cable.safetensors --output demo/artifacts
	$(BIN)/destseg-export inspect demo/artifacts/cable-fp32.onnx
	$(BIN)/destseg-predict demo/artifacts/cable-fp32.onnx demo/data/cable/test --output demo/predictions > /dev/null
	$(BIN)/destseg-bench agreement demo/artifacts/cable.safetensors demo/artifacts/cable-fp32.onnx --data demo/data/cable
	$(BIN)/destseg-evaluate demo/artifacts/cable-fp32.onnx --data demo/data --output demo/report
	@echo
	@echo "Pictures: demo/predictions/overview.png (the highest scores first)"
	@echo "          demo/predictions/overlays/<defect>/*.png (one for each test image)"
	@echo "Open this in a browser, and move the threshold: demo/report/report.html"

# On a machine with a CUDA GPU: rehearse (5 minutes), then PROFILE=record BUDGET=600. It needs no installation and
# no network; PYTHON is the one that has torch. DATA holds MVTec AD categories; DEVICE=cpu rehearses without a GPU.
DATA ?= ../shared/datasets/mvtec
TEXTURES ?= ../shared/datasets/dtd/images
CATEGORY ?= screw
PROFILE ?= rehearse
BUDGET ?= 300
DEVICE ?= cuda
gpu:
	PYTHONPATH=.:export:benchmarks $(PYTHON) -m destseg_bench gpu --profile $(PROFILE) --budget $(BUDGET) --device $(DEVICE) --category $(CATEGORY) --data $(DATA) --textures $(TEXTURES) --teacher-weights $(TEACHER) --output gpu-results

# Two slices at a time, the longest first; one that ends makes room for the next. Each has a core of its own: ONNX
# Runtime, OpenVINO and PyTorch start a thread for each core they may use, and two times two threads on two cores wait
# for each other half of the time. cpp/ takes what is left of both, and has a process of its own: it loads a second copy
# of ONNX Runtime beside the wheel's, and once such a process crashed inside the wheel's.
SLICES := export deploy house cpp bench
test: install
	$(MAKE) -j2 $(SLICES:%=test-%)

test-deploy test-bench test-export test-house: test-%: install
	sh tests/on_a_core.sh $(VENV) $(BIN)/pytest tests/$*

test-cpp: install
	$(BIN)/pytest tests/cpp

# Archives, trainings and the accuracy benchmark on real Ray clusters of this machine, in an environment of its own: Ray
# is large, and nothing else needs it.
test-ray: $(VENV)/.ray
	$(VENV)/ray/bin/python -m pytest -q tests/deploy/archive tests/deploy/training/test_on_ray.py tests/bench/accuracy/test_on_ray.py

$(VENV)/.ray: setup.cfg constraints.txt $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/ray
	$(VENV)/ray/bin/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[ray,onnxruntime,train]' onnx pytest
	touch $@

# cpp/ for Linux on ARM, under qemu. As root: apt-get install cmake g++-aarch64-linux-gnu qemu-user-static.
test-arm64: $(VENV)/.arm64
	DESTSEG_ARM64=1 $(BIN)/pytest tests/cpp/test_arm64.py

$(VENV)/.arm64: $(VENV)/.installed
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/onnxruntimes --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --python-version 3.11 --only-binary :all: $(PINNED_ORT)
	touch $@

# cpp/ built by GCC 9, in a system of its own, Debian 11. As root: apt-get install debootstrap.
DEBIAN ?= http://deb.debian.org/debian
test-gcc9: $(VENV)/.gcc9
	DESTSEG_GCC9=$(abspath $(VENV)/bullseye) $(BIN)/pytest tests/cpp/test_gcc9.py

$(VENV)/.gcc9: $(VENV)/.installed
	rm -rf $(VENV)/bullseye
	debootstrap --variant=minbase --include=g++-9,cmake,make bullseye $(VENV)/bullseye $(DEBIAN)
	touch $@

# What runs without torch, under another Python: make test-python3.10 (the oldest), make test-python3.12. Since
# 3.12 errors keep the frames that raised them alive in other ways, and with them contexts of TensorRT.
test-python3.%: $(VENV)/.python3.%
	$(VENV)/python3.$*/bin/python -m pytest -q tests/deploy/runtime/trt tests/house/test_light_import.py

$(VENV)/.python3.%: setup.cfg constraints.txt $(VENV)/.installed
	python3.$* -m venv $(VENV)/python3.$*
	$(VENV)/python3.$*/bin/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt numpy opencv-python-headless Pillow click pytest tomli
	touch $@

.PRECIOUS: $(VENV)/.python3.%

# A real Triton server, from NVIDIA's wheel: parity, batches, an update under load (see the test). Its
# Python back end needs numpy before 2, so it has an environment of its own.
TRITON := nvidia-pytriton==0.7.0
test-triton: $(VENV)/.triton
	DESTSEG_TRITON=$(abspath $(VENV)/triton) $(BIN)/pytest -s tests/deploy/serving/test_triton.py

$(VENV)/.triton: $(VENV)/.installed
	rm -rf $(VENV)/triton
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/triton $(TRITON)
	$(BIN)/python -m zipfile -e $(VENV)/triton/*.whl $(VENV)/triton/server
	cd $(VENV)/triton/server/pytriton/tritonserver && cp python_backend_stubs/$$($(abspath $(BIN))/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/* backends/python/ && chmod +x bin/tritonserver backends/python/triton_python_backend_stub
	$(PYTHON) -m venv $(VENV)/triton/venv
	$(VENV)/triton/venv/bin/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) 'numpy<2' onnxruntime==1.32.0
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation, in site/; a warning fails it (not with --quiet, which hides warnings from --strict, too).
# The variable silences Material's notice of its own end.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html"

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[docs]'
	touch $@

# How large, how tangled and how well explained the source is. With BEFORE, the checkout of an earlier
# version, the two stand side by side.
house:
	$(PYTHON) tests/house/measure.py $(BEFORE) .

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo
