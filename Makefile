# fpmd. What matters most: make demo, make test. CONTRIBUTING.md has the rest.

SHELL     := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO        ?= go
BIN       := bin
VERSION   ?=
LDFLAGS   := -s -w $(if $(VERSION),-X main.release=$(VERSION))
DEMO_ADDR ?= 127.0.0.1:8080
FUZZTIME  ?= 60s
SOAK      ?= 20
PREFIX    ?= /usr
DESTDIR   ?=
# Where systemd looks: of the prefixes, only these two have folders of their own.
SYSTEM     = $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,/etc)
# Debian has packages' completion for zsh in a folder of its own.
ZSHDIR    ?= $(PREFIX)/share/zsh/$(if $(and $(filter /usr,$(PREFIX)),$(wildcard /usr/share/zsh/vendor-completions)),vendor-completions,site-functions)
PLACED     = sed 's|/usr/bin/fpmd|$(PREFIX)/bin/fpmd|'
GOFMT      = "$$($(GO) env GOROOT)/bin/gofmt"

.PHONY: build install demo test test-deps lint fuzz bench soak clock clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/fpmd ./bench/goapp

$(BIN)/fpmd:
	$(MAKE) build

# What was built, below DESTDIR if a package is made of it. Nothing is enabled or started, configuration is left as it is, and
# no user is made: fpmd is root's, and the user of a pool is its operator's choice; sysusers.d has a group for operators.
install: $(BIN)/fpmd
	install -D -m 755 $(BIN)/fpmd "$(DESTDIR)$(PREFIX)/bin/fpmd"
	install -d "$(DESTDIR)/etc/fpmd/conf.d"
	[ -e "$(DESTDIR)/etc/fpmd/fpmd.toml" ] || install -m 644 etc/fpmd.toml "$(DESTDIR)/etc/fpmd/fpmd.toml"
	install -m 644 etc/conf.d/blog.toml.sample "$(DESTDIR)/etc/fpmd/conf.d/"
	[ -e "$(DESTDIR)/etc/logrotate.d/fpmd" ] || $(PLACED) etc/logrotate.d/fpmd | install -D -m 644 /dev/stdin "$(DESTDIR)/etc/logrotate.d/fpmd"
	$(PLACED) systemd/fpmd.service | install -D -m 644 /dev/stdin "$(DESTDIR)$(SYSTEM)/systemd/system/fpmd.service"
	$(PLACED) systemd/fpmd@.service | install -D -m 644 /dev/stdin "$(DESTDIR)$(SYSTEM)/systemd/system/fpmd@.service"
	install -m 644 systemd/fpmd.socket systemd/fpmd@.socket "$(DESTDIR)$(SYSTEM)/systemd/system/"
	install -D -m 644 systemd/tmpfiles.conf "$(DESTDIR)$(SYSTEM)/tmpfiles.d/fpmd.conf"
	install -D -m 644 systemd/sysusers.conf "$(DESTDIR)$(SYSTEM)/sysusers.d/fpmd.conf"
	install -D -m 644 systemd/hardened.conf "$(DESTDIR)$(PREFIX)/share/fpmd/hardened.conf"
	$(BIN)/fpmd completion bash | install -D -m 644 /dev/stdin "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/fpmd"
	$(BIN)/fpmd completion zsh | install -D -m 644 /dev/stdin "$(DESTDIR)$(ZSHDIR)/_fpmd"
	$(BIN)/fpmd completion fish | install -D -m 644 /dev/stdin "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/fpmd.fish"

# A page on DEMO_ADDR until ^C. Nothing is installed, and nothing is left but bin/.
demo: build
	@DEMO_ADDR=$(DEMO_ADDR) exec bash examples/demo/run.sh $(BIN)/fpmd

# What the tests need and the machine lacks: installed when root asks, else named.
test-deps:
	@bash test/install.sh

test: test-deps
	@unformatted=$$($(GOFMT) -l .); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; } >&2
	$(GO) vet ./...
	GOARCH=386 $(GO) vet ./... # a number that an int of 32 bits can't hold
	$(GO) test -race -count=1 -timeout 30m ./...
	$(GO) test -count=1 -timeout 5m ./fcgi ./protocol # what the race detector spoils: allocations and memory
	@GO=$(GO) bash test/fuzz.sh 2s fresh

lint:
	$(GO) tool -modfile=tools/go.mod golangci-lint run ./...

# Each fuzz target of each package, for FUZZTIME.
fuzz:
	@GO=$(GO) bash test/fuzz.sh $(FUZZTIME)

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

# Storms at full length; and what depends on who comes first, SOAK times: load, kills, reloads, stops, clients that leave. The second is
# run whatever came of the first.
soak: test-deps
	failed=; \
	FPMD_STORM=60s FPMD_FIGURES=1 FPMD_MUTATIONS=200000 FPMD_LIVES=10000 $(GO) test -race -count=1 -v -timeout 60m -run 'Storm|Mutations|Lives' ./cmd/fpmd || failed=1; \
	$(GO) test -race -count=$(SOAK) -timeout 90m -run 'Load|Kill|Reload|Signals|Leav|Shutdown|Slot|Stream|Sent|Abort|Withdraw' \
	  ./fcgi ./protocol ./manager ./worker ./cmd/fpmd || failed=1; \
	[ -z "$$failed" ]

# What waits, with a wall clock that jumps by years every second. Package time is built anew for it, and all on it.
clock: test-deps
	GO=$(GO) bash test/clock.sh

clean:
	rm -rf $(BIN)
