# The front door. "make help" lists what there is.

# Go from the path, else from where its tarball puts it.
GO      ?= $(shell command -v go || echo /usr/local/go/bin/go)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOLS   := $(HOME)/.cache/drover/bin
LINT    := v2.13.0
FUZZ    ?= 10m
BENCH   ?= .
ARGS    ?=
# Buildroots are mounted and namespaces made by root: the demo and the tests run as root, all
# else as you.
ROOT    := $(if $(filter 0,$(shell id -u)),,sudo -H --preserve-env=GO,CI,DROVER_LONG env PATH="$(PATH)")
EXEC    := $(if $(ROOT),-exec '$(ROOT)')

export GO
export CGO_ENABLED = 0
# The distributions' own Go may be told not to fetch the one that go.mod asks for, and git may
# distrust a tree of another user's.
export GOTOOLCHAIN ?= auto
export GOFLAGS += -buildvcs=false

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint build long clean setup-build setup-demo setup-test setup-long

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# Prerequisites, not lines of the recipes: make looks for Go when it begins a recipe.
setup-build setup-demo setup-test setup-long:
	scripts/setup $(@:setup-%=%)

demo: setup-demo ## from a git push to an installed, signed package; ARGS=--once stops afterwards
	@$(MAKE) --no-print-directory build
	$(ROOT) bin/drover dev demo $(ARGS)

# -p 2: packages start databases, builds and browsers of their own.
test: setup-test ## every test, on SQLite and on PostgreSQL
	$(GO) vet ./...
	$(GO) test -p 2 -timeout 20m $(EXEC) ./...

bench: setup-test ## benchmarks, each beside the peer it is measured against; BENCH=regexp
	$(GO) test -p 1 $(EXEC) -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m ./...

lint: setup-build ## gofmt, go vet and golangci-lint
	@$(TOOLS)/golangci-lint version 2>/dev/null | grep -qF 'version $(LINT:v%=%) ' || \
		GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT)
	PATH="$(dir $(GO)):$$PATH" $(TOOLS)/golangci-lint run ./...

build: setup-build ## bin/drover
	$(GO) build -trimpath -ldflags '-s -w -X drover/internal/app.Version=$(VERSION)' -o bin/drover ./cmd/drover

long: setup-long ## the long forms of the tests (crash, scale), then each fuzz target for FUZZ (10m)
	DROVER_LONG=1 $(GO) test -p 1 -timeout 4h $(EXEC) ./...
	scripts/fuzz $(FUZZ)

clean: ## remove what was built here
	$(ROOT) rm -rf bin demo-data
