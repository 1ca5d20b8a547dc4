# Targets for people: run, test, check, generate, fuzz, bench, chaos.

GO ?= go
FUZZTIME ?= 30s
CHAOSTIME ?= 5m

.PHONY: all build run test peers check generate fuzz bench chaos clean
all: build

# The gateway, as bin/mailgw.
build:
	$(GO) build -o bin/mailgw ./cmd/mailgw

# Start the gateway on gateway.toml. Mail goes into Maildirs below var.
run: build
	mkdir -p var
	bin/mailgw serve --hints

# Run all tests. What they need from Debian is installed if it is missing. No
# result is taken from a cache: some tests build the program themselves.
# Go's race detector wants a C compiler.
test: peers
	@race=-race; \
	if ! $(GO) build -race runtime/cgo 2>/dev/null; then race=; echo "no C compiler: testing without -race"; fi; \
	set -x; $(GO) test $$race -count=1 -timeout 10m ./...

# Install the programs that the tests need, if apt-get and root are there.
peers:
	GO="$(GO)" internal/peers/install

# Look for what tests do not find.
check:
	@unformatted=$$($$($(GO) env GOROOT)/bin/gofmt -l .) || exit 1; \
	if [ -n "$$unformatted" ]; then echo "not in gofmt's form:"; echo "$$unformatted"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) mod tidy -C internal/bench/peers -diff
	$(GO) vet ./...
	$(GO) vet -C internal/bench/peers ./...
	$(GO) tool staticcheck ./...

# Make the generated code anew. It needs protoc 3.21.12 (Debian: protobuf-compiler).
generate:
	$(GO) generate ./...

# Run every fuzz target for FUZZTIME.
fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg || exit 1; \
		done; \
	done

# What mailgw costs beside its peers, and whether the goals are met: all of them,
# or as GOALS=1,4 says. It takes a machine that has nothing else to do. What the
# tests need is installed as for them: all of it, whatever GOALS says.
bench: peers
	$(GO) run ./internal/bench $(if $(GOALS),-goals $(GOALS))

# Send mail for CHAOSTIME while everything fails, and see that nothing is lost.
chaos: peers
	$(GO) test -race -count=1 -v -timeout 24h -run '^TestChaos$$' ./internal/peers -chaos $(CHAOSTIME)

clean:
	rm -rf bin var
