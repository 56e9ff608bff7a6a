# SPDX-License-Identifier: Apache-2.0
# The commands for development.  `make demo` and `make test` install what they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
# One test process more than processors: tests wait for timeouts and for other programs.
JOBS   ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1)')
# An environment whose interpreter was removed, or replaced by another version, is created again.
STALE  := $(if $(wildcard $(STAMP) $(DEMO_STAMP)),$(shell $(BIN)/python -c 'import mailproxy_config' 2>/dev/null || echo stale))
BUILD  ?= docker buildx build --load
PLATFORMS ?= linux/amd64,linux/arm64
CLUSTER ?= kind
MAIL_SERVER ?= imap.example.com:143
REGISTRY ?= ghcr.io/mailproxy
REVISION = $(shell git rev-parse --short HEAD)
DIST   ?= dist
# CA=FILE: the authority of a proxy that inspects TLS between this build and the package index.
comma  := ,
BUILD_ARGS = --build-arg REVISION=$(REVISION) $(if $(CA),--secret id=ca$(comma)src=$(CA))
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
VERSIONED := pyproject.toml Dockerfile charts/mailproxy-operator/Chart.yaml deploy/operator.yaml \
             operator/mailproxy_operator/settings.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz check lint types imports fix interop e2e generate locks pictures images push kind sbom version chart bench clean

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml .ci/venv $(STALE)
	@.ci/venv '$(PYTHON)' '$(VENV)' operator,demo,dev 'make $(firstword $(MAKECMDGOALS) setup)'
	@touch $@ $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml .ci/venv $(STALE)
	@.ci/venv '$(PYTHON)' '$(VENV)' demo 'make $(firstword $(MAKECMDGOALS) demo)'
	@touch $@

.PHONY: stale
stale:

setup: $(STAMP)  ## Create a virtual environment with all dependencies

demo: $(DEMO_STAMP)  ## Run a proxy and mail servers on loopback, and log in with each protocol
	$(BIN)/mailproxy-operator local -f deploy/examples/demo.yaml --demo $(ARGS)

# Without positions in bytecode, tracebacks are formatted without ast.parse, which Python 3.11 can enter twice when garbage
# is collected inside of it: it then raises SystemError, which ends a test process.
test: setup  ## Run the tests; those that need a missing program are skipped
	PYTHONNODEBUGRANGES=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

fuzz: setup  ## Run only the generated tests, with twenty times as many examples (half an hour)
	MAILPROXY_FUZZ=20 $(BIN)/python -m pytest -n $(JOBS) -m generated $(ARGS)

check: lint types imports test  ## Run all checks and tests

lint: setup  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## Check types
	$(BIN)/mypy
	$(BIN)/mypy tests/support benchmarks

imports: setup  ## Check the import contracts
	$(BIN)/lint-imports

fix: setup  ## Format, sort imports, apply safe fixes, add licence lines
	grep -rL --include='*.py' 'SPDX-License-Identifier' demo operator proxy tests benchmarks charts deploy | xargs -r sed -i '1i # SPDX-License-Identifier: Apache-2.0'
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

interop: setup  ## Run only the tests with real mail servers, nginx and Prometheus
	$(BIN)/python -m pytest -m interop $(ARGS)

e2e: setup  ## Run the end-to-end tests in the cluster of kubectl, which must be a throw-away one (NODE=processes: without a cluster)
	MAILPROXY_E2E_NODE=$(or $(NODE),cluster) $(BIN)/python -m pytest tests/e2e -n 0 $(ARGS)

bench: setup  ## Compare with nginx, Dovecot and HAProxy (under ten minutes); writes benchmarks/RESULTS.md; ARGS=NAME: see benchmarks/README.md
	$(BIN)/python -m benchmarks --write $(ARGS)

generate: setup  ## Update the generated pages and manifests (docs/conformance.md needs nginx, and minutes)
	$(BIN)/python -m mailproxy_config.reference_page > docs/reference/directives.md
	$(BIN)/python -m mailproxy.telemetry.metrics_reference > docs/reference/metrics.md
	$(BIN)/python -m mailproxy_operator.reasons.page > docs/reference/conditions.md
	$(BIN)/mailproxy-operator crd > deploy/crd.yaml
	$(BIN)/python charts/values_page.py
	$(BIN)/python charts/crd_page.py
	$(BIN)/python charts/plain_manifests.py
	PYTHONPATH=deploy/monitoring $(BIN)/python -m mailproxy_monitoring
	PYTHONPATH=docs/diagrams $(BIN)/python -m mailproxy_diagrams
	-cd tests && PYTHONPATH=. $(CURDIR)/$(BIN)/python -m support.parity.conformance

locks: setup  ## Update the pinned packages of the images
	$(BIN)/python -m pip install --quiet uv
	for i in proxy operator build; do $(BIN)/python deploy/images/direct_requirements.py $$i | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-annotate -q --upgrade --custom-compile-command "make locks" -o deploy/images/requirements-$$i.txt || exit 1; done

pictures: setup  ## Draw the pictures of the demo, of kubectl, and of the dashboards, from real output and data (ten minutes)
	cd tests && PYTHONPATH=. $(CURDIR)/$(BIN)/python -m support.terminal_pictures
	cd tests && PYTHONPATH=. $(CURDIR)/$(BIN)/python -m support.prometheus_world.picture

images:  ## Build both images, with the names of the chart; with another tool: make images BUILD='buildah bud --format docker'
	$(BUILD) --target proxy -t $(REGISTRY)/mailproxy:$(VERSION) $(BUILD_ARGS) .
	$(BUILD) --target operator -t $(REGISTRY)/mailproxy-operator:$(VERSION) $(BUILD_ARGS) .

push:  ## Build both images for amd64 and arm64, and push them: make push REGISTRY=registry.example/mail
	@test '$(origin REGISTRY)' != file || { echo 'make push REGISTRY=registry.example/mail: where to push to must be given' >&2; exit 2; }
	mkdir -p $(DIST)
	docker buildx build --push --platform $(PLATFORMS) --target proxy -t $(REGISTRY)/mailproxy:$(VERSION) $(BUILD_ARGS) --metadata-file $(DIST)/image-proxy.json $(PUSH_ARGS) .
	docker buildx build --push --platform $(PLATFORMS) --target operator -t $(REGISTRY)/mailproxy-operator:$(VERSION) $(BUILD_ARGS) --metadata-file $(DIST)/image-operator.json $(PUSH_ARGS) .

kind:  ## Install operator and first proxy into a local cluster: make kind [CLUSTER=k3d|minikube] [MAIL_SERVER=HOST:PORT]
	@$(PYTHON) deploy/local_cluster.py --tool '$(CLUSTER)' --name '$(CLUSTER_NAME)' --mail-server '$(MAIL_SERVER)' --proxy-image $(REGISTRY)/mailproxy:$(VERSION) --operator-image $(REGISTRY)/mailproxy-operator:$(VERSION)

sbom:  ## Write the bills of materials of both images to dist/, as CycloneDX JSON
	mkdir -p $(DIST)
	for i in proxy operator; do $(PYTHON) deploy/images/sbom.py $$i > $(DIST)/sbom-$$i.cdx.json || exit 1; done

version:  ## Change the version in all files: make version TO=0.2.0
	test -n "$(TO)"
	sed -i 's/$(subst .,\.,$(VERSION))/$(TO)/' $(VERSIONED)

chart: setup  ## Run the tests of the chart
	$(BIN)/python -m pytest tests/chart

clean:  ## Remove generated files and virtual environments
	rm -rf $(VENV) .venv-* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
