# Each word sets up what it needs, once. You need Python 3.11 or newer, pip and make.
# `make test ARGS="-k encryption"` passes arguments on, `make PYTHON=/path/to/python ...` chooses the interpreter, `make UV= ...` uses pip.

# The system's Python first: it is built with optimizations, and runs the tests a third faster than one without.
PYTHON ?= $(shell for python in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
UV ?= $(shell command -v uv 2>/dev/null)
# Processes of the tests. Some tests wait, so one more than cores; with two more, two cores need a fifth more CPU.
PROCESSES ?= $(shell (nproc || getconf _NPROCESSORS_ONLN || echo 2) 2>/dev/null | awk '{ print $$1 < 7 ? $$1 + 1 : 8 }')
ARGS ?=
QUICK ?=
ONLY ?=
PEERS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-browser test-recipes screenshots check faults bench console

help: ## list these words
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## show an outbox in the terminal
	@.venv/bin/async-task demo $(ARGS)

test: .venv/.dev ## run the tests on every database that answers
	@PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -n $(PROCESSES) --dist worksteal -q -m "not long" $(ARGS)

test-long: .venv/.dev ## run what `make test` leaves out: slow tests in other databases; processes, large tables, installation
	@PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -n $(PROCESSES) --dist worksteal -q -m long $(ARGS)

test-browser: .venv/.browser ## run the stories of the dashboard in Chromium, which is installed if it can be
	@$(install_chromium)
	@PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -q tests/browser $(ARGS)

test-recipes: .venv/.dev ## run the tests of each recipe in examples/recipes, in an environment of its own (ARGS="flask": that one)
	@cd tests && UV="$(UV)" ../.venv/bin/python -m recipes $(ARGS)

screenshots: .venv/.browser ## take the pictures of the dashboard in docs/images anew
	@$(install_chromium)
	@.venv/bin/python tests/browser/screenshots.py docs/images

check: .venv/.dev ## check style, types and imports; a warning is an error
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --warnings
	@.venv/bin/lint-imports
	@.venv/bin/python tests/cli/check_scaffold.py
	@echo "Style, types and imports are clean."

faults: .venv/.dev ## inject faults for 30 minutes (QUICK=1: 4 minutes) and check that nothing is lost, doubled or charged
	@cd tests && ../.venv/bin/python -m faults $(if $(QUICK),--quick) $(ARGS)

bench: .venv/.bench ## measure speed beside other libraries (QUICK=1, ONLY=drain,latency, PEERS=0)
	@.venv/bin/python -m benchmarks $(if $(QUICK),--plan quick) --only "$(ONLY)" --peers "$(PEERS)" \
		$(if $(QUICK)$(ONLY)$(PEERS),,--page docs/benchmarks.md) $(ARGS)

console: .venv/.demo ## open a Python prompt in the example shop
	@PYTHONPATH=examples .venv/bin/python -q -i -m shop.console

.venv/.demo: pyproject.toml | .venv/bin/python
	@$(call install,$(demo_extras))
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@$(call install,dev)
	@touch $@ .venv/.demo

.venv/.browser: pyproject.toml | .venv/bin/python
	@$(call install,browser)
	@touch $@ .venv/.dev .venv/.demo

.venv/.bench: pyproject.toml | .venv/bin/python
	@$(call install,bench)
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "async-task needs Python 3.11 or newer, and none was found: make PYTHON=/path/to/python" >&2; exit 1; }
	@rm -rf .venv
	@if test -n "$(UV)"; then "$(UV)" venv --quiet --seed --python "$(PYTHON)" .venv; \
	else said=$$("$(PYTHON)" -m venv .venv 2>&1) || { rm -rf .venv; echo "$$said" >&2; \
	echo "$(PYTHON) could not make a virtual environment: on Debian and Ubuntu, install the package python3-venv." >&2; exit 1; }; fi

demo_extras := demo

# $(1): the extras to install; the library itself is installed in editable form
define install
begun=$$(date +%s); \
if test -n "$(UV)"; then "$(UV)" pip install --quiet --python .venv/bin/python --editable '.[$(1)]'; \
else .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[$(1)]'; fi && \
echo "Set up .venv with $$(.venv/bin/python --version) and async-task[$(1)] in $$(($$(date +%s) - begun)) s."
endef

# Debian's and Ubuntu's, if we may install it. Without it the tests say so.
define install_chromium
test -n "$$ASYNC_TASK_TEST_CHROMIUM" || command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || true
endef
