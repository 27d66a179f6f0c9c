# What people and CI run; `make help` lists it. What is fetched lies in $XDG_CACHE_HOME/vmm, what is built in bin and out.

KERNEL   ?= 6.1# series of the guest kernel that boot takes
FUZZTIME ?= 30s
TIMEOUT  ?= 0# of make lab; 0 is none
E2E      ?= -timeout 60m

GOLANGCI := v2.15.0
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null)
# As typed: make would take the shell's dollar signs for its own.
export LAB_CMD := $(value CMD)

export CGO_ENABLED = 0
.DEFAULT_GOAL = help
.PHONY: help build initramfs boot lab test test-unit test-kvm test-e2e bench fuzz lint fmt check setup clean bin/lab bin/fetch-kernel

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: container/initrd/bin/init ## build bin/vmm
	@go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/vmm ./cmd/vmm

# Into bin/vmm: the first process of containers' machines.
container/initrd/bin/init: go.mod $(shell find guest/init container/wire -name '*.go')
	@go build -trimpath -ldflags '-s -w' -o $@ ./guest/init

initramfs: out/u-root.cpio ## build the guest's initramfs, out/u-root.cpio

out/u-root.cpio: scripts/initramfs go.mod $(shell find guest -name '*.go')
	@scripts/initramfs $@

bin/lab bin/fetch-kernel:
	@go build -o $@ ./scripts/$(notdir $@)

boot: build out/u-root.cpio bin/lab bin/fetch-kernel ## boot a Debian kernel (KERNEL=6.1) to a shell; ends with poweroff, or Ctrl-A x
	@exec scripts/boot $(KERNEL)

lab: build out/u-root.cpio bin/lab ## a shell on a machine with a true KVM, or CMD='...' there, with FILES='a b' in /lab; TIMEOUT=10m
	@scripts/setup qemu-system-x86
	@exec bin/lab -timeout $(TIMEOUT) $(FILES:%=-file %) -- "$$LAB_CMD"

test: test-unit test-e2e ## all tests

test-unit: ## unit tests with the race detector; KVM's payload tests with them, where /dev/kvm opens
	CGO_ENABLED=1 go test -race $$(go list ./... | grep -v /test/)

test-kvm: ## the tests that run payloads on /dev/kvm, which has to be there
	REQUIRE_KVM=1 go test -count=1 ./kvm/... ./machine/...

test-e2e: build out/u-root.cpio ## boot guests, in the nested lab where this machine's KVM can't
	@scripts/setup qemu-system-x86
	go test -count=1 -p 1 $(E2E) ./test/...

bench: build out/u-root.cpio ## measure vmm beside QEMU and write docs/benchmarks.md: 20 minutes, on a quiet machine; as root on its own KVM too
	@scripts/setup qemu-system-x86 iperf3 iproute2
	go run ./test/bench

fuzz: ## run each fuzz target for FUZZTIME=30s
	@scripts/fuzz $(FUZZTIME)

lint: bin/golangci-lint-$(GOLANGCI) ## golangci-lint, with the rules of .golangci.yml
	@bin/golangci-lint-$(GOLANGCI) run ./...

bin/golangci-lint-$(GOLANGCI):
	@GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	@mv bin/golangci-lint $@

fmt: ## format all Go files
	@gofmt -l -w $$(git ls-files '*.go')

check: ## what a change should pass before it is sent: format, vet, lint, unit tests
	@test -z "$$(gofmt -l $$(git ls-files '*.go') | tee /dev/stderr)"
	@go vet ./...
	@$(MAKE) --no-print-directory lint test-unit

setup: ## install the Debian packages that the tests need (as root)
	@scripts/setup qemu-system-x86 qemu-utils busybox-static acpica-tools e2fsprogs dosfstools mtools fdisk libarchive-tools

clean: ## remove what was built here; the cache stays
	@rm -rf bin out container/initrd/bin/init
