# Every target sets up what it needs. Nothing is assumed but Python 3.11+, make, curl, openssl.
# The fastest Python of this machine, unless PYTHON names one.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON := $(VENV)/bin/python
export UV_PYTHON_DOWNLOADS := never
# Services start in a third of the time with compiled modules; here they lie out of the way.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache
READY := $(VENV)/.ready
DIST ?= dist
# Twice the cores of the smallest machine: tests wait for servers half of the time.
WORKERS ?= 4
MEMBERS := $(wildcard libs/*/pyproject.toml services/*/pyproject.toml tests/*/pyproject.toml deploy/*/pyproject.toml)
PACKAGES := estdeploy esthelm estsupply estmonitoring estcore estclient estdev estsetup est_frontend est_frontend_srp ca_signer renewal audit est_witness est_issuer estsuite_faults estsuite_testing estbench loadmodel renewalbench

.PHONY: help demo up unit test interop compose-test images-test cluster-test cluster-drills issuer-test conformance check fmt lint type imports deploy-check dist sbom audit-deps images images-lock uv-lock bench scaling renewal-figures chaos drills fuzz clean

help:           ## show the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

UV_HASHES := deploy/requirements-uv.txt

$(READY): pyproject.toml uv.lock $(UV_HASHES) $(MEMBERS)
	@test -x $(BIN)/uv || sh deploy/make_venv.sh $(VENV) $(UV_HASHES) $(PYTHON)
	@$(BIN)/uv sync --frozen --quiet && touch $(READY)

demo: $(READY)  ## the main job in one command: enroll, re-enroll, rotate, audit
	@$(BIN)/estsuite demo

up: $(READY)    ## the whole suite to play with, until Ctrl-C (UP="--est-port 9443" moves ports)
	@$(BIN)/estsuite up $(UP)

unit: $(READY)  ## the tests that need no server
	@$(BIN)/pytest -q -n 2 --dist loadfile --hypothesis-profile quick tests/unit

test: $(READY)  ## every test, unit to end-to-end, against real servers
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

interop: $(READY) ## EST clients of other makers, fetched and built, against a suite
	@$(BIN)/uv sync --frozen --quiet --group interop && $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=5 tests/interop

compose-test: $(READY) ## docker compose up after a fresh clone, an operator, a second up, each file of deploy/compose; needs the images
	@$(BIN)/pytest -q -p no:randomly -p no:xdist -x --ignore tests/containers/test_builders.py tests/containers

images-test: $(READY) ## an image by each builder of this machine, into a registry and back (BASE= NETWORK= PLATFORM=); needs docker-registry
	@$(if $(BASE),BASE=$(BASE)) $(if $(NETWORK),NETWORK=$(NETWORK)) $(if $(PLATFORM),PLATFORM=$(PLATFORM)) $(BIN)/pytest -q -s -p no:randomly -p no:xdist tests/containers/test_builders.py

cluster-test: $(READY) ## the suite on the Kubernetes that KUBECONFIG names; its namespace estsuite is made anew
	@$(BIN)/pytest -q -s -p no:randomly -p no:xdist --durations=0 -x tests/cluster

cluster-drills: $(READY) ## faults of pods on that Kubernetes: seen, lost, time to recover (OUT=folder of cluster.json and cluster.md)
	@CLUSTER_DRILLS=$(or $(OUT),drills-report) $(BIN)/pytest -q -s -p no:randomly -p no:xdist tests/cluster/test_drills.py

issuer-test: $(READY) ## est-issuer with cert-manager's controllers on the Kubernetes that KUBECONFIG names; needs Go
	@$(BIN)/pytest -q -s -p no:randomly -p no:xdist --durations=5 tests/cert_manager

conformance: $(READY) ## EST conformance from outside; any server with TARGET="--target https://... --ca ..."
	@$(BIN)/python tests/conformance/run.py $(TARGET)

check: $(READY) lint type imports deploy-check ## what CI checks besides the tests

lint:
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && echo "ruff: clean"

fmt: $(READY)   ## format and fix
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

type:
	@$(BIN)/mypy $(addprefix -p ,$(PACKAGES)) $(addprefix -p tests.,unit integration e2e conformance interop containers cluster cert_manager chaos drills fuzz) -m tests.conftest

imports:
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.log 2>&1 && tail -n 1 $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

deploy-check:   ## render and validate docker-compose.yml and deploy/k8s
	@$(BIN)/python deploy/check.py

chaos: $(READY) ## random faults in a suite of two of everything (SEED=7 MINUTES=30); root fills disks too
	@$(BIN)/python tests/chaos/run.py $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

drills: $(READY) ## every fault alone: seen, lost, time to recover (OUT=folder ONLY=word); OUT=docs/drills writes docs/drills.md
	@$(BIN)/python tests/drills/run.py --out $(or $(OUT),drills-report) $(if $(ONLY),--only "$(ONLY)")$(if $(filter docs/drills,$(OUT)), && $(BIN)/python docs/generate.py)

fuzz: $(READY) ## every parser that outsiders reach, coverage-guided (SECONDS=600 for each, KEEP=1 keeps inputs)
	@$(BIN)/uv sync --frozen --quiet --group fuzz && $(BIN)/python tests/fuzz/run.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(KEEP),--keep)

bench: $(READY) ## what an enrollment costs, beside step-ca and OpenBao, into docs/benchmarks (BENCH="--quick" OUT=folder)
	@$(BIN)/uv sync --frozen --quiet --group bench && $(BIN)/python benchmarks/enroll.py --out $(or $(OUT),docs/benchmarks) $(BENCH) && $(BIN)/python docs/generate.py

scaling: $(READY) ## simulate the load of large fleets, into docs/scaling (SCALING=measure counts what a rotation leaves first)
	@$(BIN)/uv sync --frozen --quiet --group bench && $(if $(SCALING),$(BIN)/python benchmarks/scaling.py $(SCALING) --out docs/scaling && )$(BIN)/python benchmarks/scaling.py simulate --out docs/scaling && $(BIN)/python docs/generate.py

renewal-figures: $(READY) ## figures of renewal, into docs/benchmarks (PART="claims polls outage rotations"; claims need 15 GB)
	@for part in $(or $(PART),claims polls outage rotations); do $(BIN)/python benchmarks/renewal_figures.py $$part || exit 1; done && $(BIN)/python docs/generate.py

dist: $(READY)  ## wheels and sdists of the client and the core it needs, for devices, into dist/
	@for name in core client; do $(BIN)/uv build --quiet --package estsuite-$$name --out-dir $(DIST) || exit 1; done

images: $(READY) ## every image by docker or podman, then a look into each (IMAGES="audit estctl" BUILDER= BASE= REGISTRY= PUSH=1 PLATFORM= INDEX= NETWORK=)
	@$(BIN)/python deploy/build_images.py $(if $(BUILDER),--builder $(BUILDER)) $(if $(BASE),--base $(BASE)) $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(PUSH),--push) $(if $(PLATFORM),--platform $(PLATFORM)) $(if $(INDEX),--index $(INDEX)) $(if $(NETWORK),--network $(NETWORK)) $(IMAGES)

sbom: $(READY)  ## bills of materials (CycloneDX) of every image and distribution, into dist/sbom/
	@$(BIN)/python deploy/sbom.py --out $(DIST)/sbom

audit-deps: $(READY) ## locked versions: origin, hashes, age, licences, known vulnerabilities (AUDIT=--allow-unchecked)
	@$(BIN)/python deploy/audit_deps.py $(AUDIT)

images-lock: $(READY) ## the digests of all images from their registries, into deploy/images.lock and the files
	@$(BIN)/python deploy/images_lock.py

uv-lock: $(READY) ## the hashes of uv (UV=0.13.9), into deploy/requirements-uv.txt
	@echo "uv==$(or $(UV),$$($(BIN)/uv --version | cut -d' ' -f2))" | $(BIN)/uv pip compile --quiet --universal --no-annotate --generate-hashes --custom-compile-command "make uv-lock" --output-file $(UV_HASHES) -

clean:          ## remove the virtual environment and the local suite's data
	rm -rf $(VENV) .estsuite
