# `make demo` and `make test` are all a fresh machine needs: Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find core client server cli -name '*.py' -o -name py.typed -o -name '*.j2' -o -name '*.css' -o -name '*.toml' \
	-o -path '*/static/*')
# One OpenMP thread: several small processes share the cores, and sums keep one order.
export OMP_NUM_THREADS ?= 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test lint unit system faults bench clean

demo: $(VENV)/.installed
	$(BIN)/fedpath demo $(DEMO_ARGS)

test: lint unit system

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fedpath.core -p fedpath.client -p fedpath.server -p fedpath.cli
	$(BIN)/lint-imports

unit: $(VENV)/.installed $(VENV)/.debian
	$(BIN)/pytest -n 2 -m "not system and not faults"

system: $(VENV)/.installed $(VENV)/.debian
	$(BIN)/pytest -n 2 --dist loadfile -m system

# Every fault in every state, and services in sealed machines: minutes each. The short form is among the system tests.
faults: $(VENV)/.installed $(VENV)/.debian
	$(BIN)/pytest -n 2 -m faults --fault-table $(VENV)/faults.md

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/round_overhead.py
	$(BIN)/python benchmarks/musk.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/longmil.py
	$(BIN)/python benchmarks/attention_rank.py
	$(BIN)/python benchmarks/global_forms.py
	$(BIN)/python benchmarks/pooling.py
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/missing_modality.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/vib.py
	$(BIN)/python benchmarks/aggregation.py
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/ray_aggregation.py
	$(BIN)/python benchmarks/poisoning.py
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/local_methods.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/reader.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/startup.py

# Dependencies, torch first and by exact version: anything else would pull the CUDA build.
$(VENV)/.dependencies: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	rm -rf build
	$(BIN)/pip install -q -c constraints.txt ".[demo,dev]"
	# timm imports torchvision, which exists for CUDA builds of torch only: as a dependency it would pull one.
	$(BIN)/pip install -q -c constraints.txt --no-deps timm torchvision
	touch $@

# The package itself, installed plainly (not editable), again whenever a source changed.
$(VENV)/.installed: $(VENV)/.dependencies setup.py README.md $(SOURCES)
	rm -rf build
	$(BIN)/pip install -q --no-deps --force-reinstall .
	rm -rf build
	touch $@

# Debian packages the tests use: a shifted clock, OpenSSL's own verdict on the certificates, a network that can be cut, a
# PostgreSQL of their own (whose programs Debian keeps off the path), Prometheus and Alertmanager, a browser, and systemd's
# own verdict on its units. RUNLEVEL keeps their services from being started.
DEBIAN := faketime openssl iproute2 postgresql prometheus prometheus-alertmanager chromium fonts-dejavu-core systemd
$(VENV)/.debian:
	(for tool in faketime openssl ip promtool prometheus-alertmanager chromium systemd-analyze; do \
		command -v $$tool || exit 1; done; command -v initdb || ls /usr/lib/postgresql/*/bin/initdb) >/dev/null 2>&1 || \
		{ apt-get update -q && RUNLEVEL=1 apt-get install -y -q --no-install-recommends $(DEBIAN); }
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
