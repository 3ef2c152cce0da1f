# Everything a newcomer needs: `make demo` and `make test`. Both make their own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip finds torch. Empty takes pip's own settings; the CPU build of PyTorch's index is smaller:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=

.PHONY: install builders demo gpu-training gpu-acceptance test test-tools test-deploy test-cpp lint types format clean

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
builders: $(VENV)/.builders

$(VENV)/.builders: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[all,dev,rtx,openvino,nncf]'
	for release in $(BINDINGS); do $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/bindings $$release || exit 1; done
	-sh cpp/get-onnxruntime-headers.sh $(VENV)/include
	touch $@

# Everything lies in demo/, made anew each time.
demo: install
	rm -rf demo
	$(BIN)/destseg-sample --output demo/data
	$(BIN)/destseg-train --category cable --data demo/data --output demo/artifacts --preset quick --teacher random
	$(BIN)/destseg-export --checkpoint demo/artifacts/cable.safetensors --output demo/artifacts
	$(BIN)/destseg-export inspect demo/artifacts/cable-fp32.onnx
	$(BIN)/destseg-predict demo/artifacts/cable-fp32.onnx demo/data/cable/test --output demo/predictions > /dev/null
	$(BIN)/destseg-bench agreement demo/artifacts/cable.safetensors demo/artifacts/cable-fp32.onnx --data demo/data/cable
	$(BIN)/destseg-evaluate demo/artifacts/cable-fp32.onnx --data demo/data --output demo/report
	@echo
	@echo "Pictures: demo/predictions/overview.png (the highest scores first)"
	@echo "          demo/predictions/overlays/<defect>/*.png (one for each test image)"
	@echo "          demo/report/curves.png, demo/report/worst.png (how well it does, and where it fails)"
	@echo "The teacher of this demo has random weights; for real parts, train with ImageNet weights."

# On a machine with a CUDA GPU: the paper's whole schedule on CATEGORY with three seeds, beside its
# tables, and the speed of the lean loop beside the reference's. DATA holds MVTec AD categories.
DATA ?= ../shared/datasets/mvtec
TEXTURES ?= ../shared/datasets/dtd/images
CATEGORY ?= screw
TEACHER ?= ../shared/weights/resnet18_imagenet1k_v1_layers1-3.safetensors
RESULTS := benchmarks/results
RUN := --category $(CATEGORY) --data $(DATA) --textures $(TEXTURES) --teacher-weights $(TEACHER) --device cuda
gpu-training: install
	$(BIN)/destseg-bench training $(RUN) --steps 10 --rounds 5 --compiled --output $(RESULTS)/training-speed-gpu.json
	$(BIN)/destseg-bench accuracy $(RUN) --seeds 0,1,2 --train-into runs --output $(RESULTS)/$(CATEGORY)-accuracy-gpu.json
	$(BIN)/pytest tests/deploy/test_training_gpu.py tests/deploy/test_feed.py tests/deploy/test_synthesis_torch.py tests/deploy/test_texture_bank.py

# On a machine with a CUDA GPU: its tests, exports, engines, agreement and latency, in one JSON.
# CHECKPOINT is a trained model of CATEGORY.
CHECKPOINT ?= artifacts/$(CATEGORY).safetensors
gpu-acceptance: install
	$(BIN)/destseg-bench gpu-acceptance --checkpoint $(CHECKPOINT) --data $(DATA)/$(CATEGORY) --tests tests --output $(RESULTS)/gpu-acceptance.json

# Two processes at a time, whose waiting threads leave the cores to the other. cpp/ has one of its own: it
# loads a second copy of ONNX Runtime beside the wheel's, and once such a process crashed inside the wheel's.
test: export OMP_WAIT_POLICY = passive
test: install
	$(MAKE) -j2 test-tools test-deploy test-cpp

test-tools: install
	$(BIN)/pytest tests/bench tests/export

test-deploy: install
	$(BIN)/pytest tests/deploy $(wildcard tests/test_*.py)

test-cpp: install
	$(BIN)/pytest tests/cpp

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo
