# fpmd. The commands that matter: make demo, make test.

SHELL    := /bin/bash
GO       ?= go
BIN      := bin
DEMO_ADDR ?= 127.0.0.1:8080
FUZZTIME ?= 60s
VERSION  ?=
LDFLAGS  := -s -w $(if $(VERSION),-X main.release=$(VERSION))
LINT     := $(GO) tool -modfile=tools/go.mod golangci-lint

.PHONY: build demo test test-deps lint fuzz bench soak clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/fpmd ./bench/goapp

# A page on DEMO_ADDR until ^C; nothing is installed, and nothing is left.
demo: build
	@DEMO_ADDR=$(DEMO_ADDR) exec bash examples/demo/run.sh $(BIN)/fpmd

# What the tests need and the machine lacks: installed as root, else named.
test-deps:
	@bash test/install.sh

test: test-deps
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt would change:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) test -race -count=1 -timeout 15m ./...
	$(GO) test -count=1 -timeout 5m ./fcgi ./protocol # what the race detector would spoil: allocations and memory

lint:
	$(LINT) run ./...

# Each fuzz target of each package for FUZZTIME.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

bench:
	$(GO) test -run '^$$' -bench . -benchmem -count 3 ./fcgi ./protocol ./manager

# The storms at their full length.
soak: test-deps
	FPMD_SOAK=1 $(GO) test -race -count=1 -timeout 60m -run 'Under|Storm|Soak|Streams' ./cmd/fpmd

clean:
	rm -rf $(BIN)
