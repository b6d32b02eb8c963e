# Two commands on a fresh machine do all the set-up: `make demo`, `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.demo-installed

.PHONY: demo test lint coverage soak clean

# torch comes first and pinned: a range would pull a build with gigabytes of CUDA onto a machine without a GPU.
# The demo needs no test tools; what is installed for the tests is enough for it.
$(INSTALLED) $(DEMO_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), a few minutes"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(if $(filter $@,$(INSTALLED)),dev,demo)]'
	touch $@

demo: $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(DEMO_INSTALLED))
	$(BIN)/sparsehub demo

# A worker for each core: a test file stays with one worker, which has its fixtures; in the order of tests/conftest.py.
test: $(INSTALLED) lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_report.yml .github/ISSUE_TEMPLATE/*_request.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format --force-filetype yaml CITATION.cff

# The tests again with every line and branch counted; the servers that they start are counted too.
coverage: $(INSTALLED)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# An endpoint under everything at once for SPARSEHUB_SOAK_SECONDS (120), and SPARSEHUB_FUZZ_REQUESTS (100,000) mutated requests.
# The property tests of formats, selection, scheduler and references with fifty times as many examples; 50 publishers and
# 50 readers killed on each home; ten minutes of atheris on packages, where there is a build of it for this Python.
FUZZ_SECONDS ?= 600
soak: $(INSTALLED)
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -m soak
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.support.package_fuzzing -max_total_time=$(FUZZ_SECONDS)

clean:
	rm -rf $(VENV) demo-run build dist *.egg-info
