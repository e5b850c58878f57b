# SPDX-License-Identifier: GPL-2.0
#
# The project's commands for people; each sets up what it needs. The kernel's
# make reads Kbuild instead of this file.
#
#: make                     build the kernel and the module, print the module's path
#: make run                 boot, load the module, show the events of a small scenario
#: make boot                a shell in the VM (the host's files are there, copy on write)
#: make boot CMD='...'      the same for one command; make fails if the command does
#: make test                everything: make check, then the tests in the VM
#: make test T=NAME         the tests in the VM whose name contains NAME
#: make test-all            the tests on all flavors of the kernel, and on arm64: hours
#: make check               what needs no VM: format, lints, patches, unit tests
#: make fuzz                a million hostile messages in the VM, guided by the code that they cover
#: make storm               minutes of events, each accounted for
#: make cycles              load, unload and kill listeners, thousands of times
#: make execs               ten thousand storms of execs by threads, each compared with /proc
#: make tables              a thousand tables of all processes, begun under load, and a thousand
#:                          losses, each compared with /proc
#: make trees               ten thousand trees of processes, each process with one FORK and one EXIT
#: make containers          ten thousand containers, each with a listener
#: make bench               what events cost, compared with the unpatched kernel and eBPF
#: make clean               delete what was built; the sources and tools stay
#:
#: ARCH=arm64               another machine, emulated: kernel, programs and root of arm64 (run, boot, test,
#:                          bench and the loads, from fuzz to containers)
#: STOCK=1                  the unpatched kernel (boot, test)
#: FLAVOR=debug             another kernel: debug, kcsan, rt, small, no-pid-ns, no-user-ns, no-net-ns,
#:                          builtin, mainline, distro (Debian's configuration), selinux
#: FLAVORS='rt distro'      the flavors of make test-all, instead of all
#: CONTINUE=1               make test-all keeps the results of the flavors that passed at this commit
#: TABLE=FILE               make test writes the page of the contract there, make test-all that of the flavors
#: RESULTS=FILE             make test writes its results there, a line of JSON each
#: OUT=DIR                  make bench writes a page and a chart there
#: CHECK=1                  make bench fails if a target is missed, or was not measured
#: ARGS='...'               options of fuzz, storm, cycles, execs, tables, trees and containers, as in
#:                          ARGS='--seed 1'
#: MEMORY=SIZE              the memory of the VM, as in MEMORY=8G (boot, fuzz, storm, cycles, execs, tables,
#:                          trees, containers)
#: SERIES=7.2               another kernel than Linux 7.3: 7.2
#: KDIR=DIR                 your own source tree, a git tree, clean or already patched
#: KDIR_STOCK=DIR           the same for the unpatched kernel
#: V=1                      show the output of the builds
#: JOBS=N                   run N compilers at once
#:
#: Everything built or downloaded is in $PROC_EVENTS_CACHE (~/.cache/proc-events).

FLAVOR ?= release

# Variables reach the scripts through the environment, and as they were typed:
# make would expand the dollar signs of CMD.
override CMD := $(value CMD)
export ARCH ARGS CHECK CMD CONTINUE FLAVOR FLAVORS JOBS KDIR KDIR_STOCK MEMORY OUT RESULTS SERIES STOCK T TABLE V

.PHONY: module run boot fuzz storm cycles execs tables trees containers test test-all check bench clean help

module:
	@scripts/kernel module --flavor "$$FLAVOR"

run boot fuzz storm cycles execs tables trees containers:
	@scripts/vm $@

test test-all check bench clean:
	@scripts/$@

help:
	@sed -n 's/^#: \{0,1\}//p' Makefile
