# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Shared by the scripts: the places of files, messages, the progress of long steps, and
# the lock of the cache. This file is sourced, never run. Standard output is only for
# results (a path, a count). All messages to the user go to standard error.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${PROC_EVENTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/proc-events}
LOGS=$CACHE/log

# Programs that the set-up unpacks instead of installing them are found through the
# path, too.
PATH=$CACHE/qemu/bin:$PATH:$CACHE/openssh/usr/sbin:$CACHE/clients/bin

# The kernel series that is built, which is also the directory of its patches in
# linux-patch/.
SERIES=${SERIES:-7.3}

# The machine of the VM. Files in the cache that are not for x86-64 have the machine in
# their names.
MACHINE=${ARCH:-x86_64}
# The kernel's make calls it x86.
[[ $MACHINE != x86 ]] || MACHINE=x86_64
# The kernel's make would take ARCH from the environment. ARCH=x86_64 means something
# else to it than no ARCH.
[[ $MACHINE != x86_64 ]] || unset ARCH

# The versions of the programs that the set-up puts into the cache.
BINDGEN_VERSION=0.73.2
VIRTME_NG_VERSION=1.42
SPHINX_VERSION=9.0.4
PYROUTE2_VERSION=0.9.7
PROC_CONNECTOR_VERSION=0.3.0

# Another run may be doing a whole build from nothing.
LOCK_LIMIT_SECONDS=7200

# If make runs a script, its variables are for that make, and not for the kernel's make
# or for cargo.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

# The git repositories of the scripts must not depend on the user's settings (hooks,
# signing, line ends, background repacking).
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null

export LC_ALL=C.UTF-8

say() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
	printf '%s: error: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

[[ -d $PROJECT/linux-patch/$SERIES ]] ||
	die "there is no series for Linux '$SERIES': set SERIES to one of $(cd "$PROJECT/linux-patch" && echo *)"

[[ $MACHINE =~ ^(x86_64|arm64)$ ]] || die "there is no ARCH '$MACHINE': choose x86_64 or arm64"

# The root of an arm64 guest, which the set-up makes from Debian's packages.
GUEST_ROOT=$CACHE/arm64/root
# The C compiler for programs that run in the guest.
GUEST_CC=(gcc)
if [[ $MACHINE == arm64 ]]; then
	PATH=$CACHE/arm64/qemu/bin:$PATH
	GUEST_CC=(clang-19 --target=aarch64-linux-gnu "--sysroot=$GUEST_ROOT" -fuse-ld=lld-19)
	export PROC_EVENTS_ROOT=$GUEST_ROOT
fi

# The C compiler for 32-bit programs that run in the guest, with the C library that
# scripts/setup --clients provides if the system has none.
COMPAT=$CACHE/clients/compat
COMPAT_CC=(gcc -m32 -static -isystem "$COMPAT/include" -idirafter /usr/include/x86_64-linux-gnu
	"-B$COMPAT/lib/" "-L$COMPAT/lib")

# Returns whether COMPAT_CC can build programs.
can_build_compat() {
	[[ $MACHINE == x86_64 ]] &&
		"${COMPAT_CC[@]}" -x c -o /dev/null - <<<'int main(void) { return 0; }' 2>/dev/null
}

# Usage: build_compat OUTPUT ARGUMENT...
# Builds a 32-bit program, or removes it if COMPAT_CC cannot build any: the tests in the
# VM are then skipped.
build_compat() {
	rm -f "$1"
	[[ $MACHINE == x86_64 ]] || return 0
	if can_build_compat; then
		"${COMPAT_CC[@]}" -o "$@"
	else
		say "no 32-bit programs, since 'gcc -m32 -static' cannot link any: run scripts/setup --clients, or install gcc-multilib"
	fi
}

# Usage: of_machine NAME
# Prints the name of a flavor for the machine, which is used for directories, logs and
# counts.
of_machine() {
	if [[ $MACHINE == x86_64 ]]; then echo "$1"; else echo "$MACHINE-$1"; fi
}

# Prints a number of seconds as 7s or 3m07s.
duration() {
	if (($1 < 60)); then printf '%ds' "$1"; else printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); fi
}

# The exit status of a check that checked nothing on this machine.
# shellcheck disable=SC2034  # the scripts that include this file use it
SKIPPED=77

# Usage: record_result FILE NAME VERDICT [REASON]
# Adds a result to a file of results, see qemu-tests/protocol/src/results.rs. VERDICT is
# "passed", "failed" or "skipped". The last two need a REASON.
record_result() {
	local verdict='"passed"'

	[[ $3 == passed ]] || verdict="{\"$3\":$(json_string "$4")}"
	printf '{"trial":{"name":%s,"verdict":%s}}\n' "$(json_string "$2")" "$verdict" >>"$1"
}

# Usage: export_origin TARGET VARIABLE...
# Exports what the results of make TARGET are made from, for the pages of the runner. The
# variables are shown if they are set. A page that such a run wrote is no change of the
# project.
export_origin() {
	local name changes

	PROC_EVENTS_COMMAND="make $1"
	shift
	for name; do
		[[ -z ${!name:-} ]] || PROC_EVENTS_COMMAND+=" $name=$(printf %q "${!name}")"
	done
	PROC_EVENTS_COMMIT=$(git -C "$PROJECT" describe --always --abbrev=12 2>/dev/null) || PROC_EVENTS_COMMIT=unknown
	changes=$(git -C "$PROJECT" status --porcelain --untracked-files=no -- . ':!Documentation/results' 2>/dev/null) || true
	[[ -z $changes ]] || PROC_EVENTS_COMMIT+=-dirty
	PROC_EVENTS_DATE=$(date -u +%F)
	PROC_EVENTS_SERIES=$SERIES
	export PROC_EVENTS_COMMAND PROC_EVENTS_COMMIT PROC_EVENTS_DATE PROC_EVENTS_SERIES
}

# Usage: record_early_end FILE REASON
# Adds to a file of results that the run ended before all of its trials had. This counts
# as a failure.
record_early_end() {
	printf '{"ended_early":%s}\n' "$(json_string "$2")" >>"$1"
}

# Prints a text without control characters as a string of JSON.
json_string() {
	local text=${1//\\/\\\\}

	printf '"%s"' "${text//\"/\\\"}"
}

# Usage: count_results [--failed] FILE...
# Prints "N passed, N failed" for files of results, or only the second number. Fails if
# anything failed, or nothing passed. A missing runner, which is needed to count, counts
# as one failure.
count_results() {
	local count status=0

	count=$("$(programs_directory)/proc-events-vm" count "$@") || status=$?
	if ((status > 1)) || [[ -z $count ]]; then
		count="0 passed, 1 failed" status=1
		[[ $1 != --failed ]] || count=1
	fi
	echo "$count"
	return "$status"
}

# Prints the path of a file relative to the clone.
shown() {
	printf '%s' "${1#"$PROJECT"/}"
}

# Sleeps without a child process. A child that outlives this script would keep standard
# error open, and a pipeline would wait for it.
pause() {
	read -rt "$1" <> <(:) || true
}

TICKER=

# How often the progress of a step is reported where each report takes a line.
REPORT_SECONDS=10

# Reports the progress of a step until it is stopped: on a terminal every second, in
# place; otherwise every ten seconds, on a line of its own.
ticker() {
	local what=$1 far=$2 owner=$$ line last

	last=$(last_seconds "$what") && last=", the last time $(duration "$last")"
	while pause 1; kill -0 "$owner" 2>/dev/null; do
		if [[ ! -t 2 ]] && ((SECONDS % REPORT_SECONDS)); then continue; fi
		line="$what: $($far 2>/dev/null) ($(duration $SECONDS)$last)"
		if [[ -t 2 ]]; then
			printf '\r\033[K%s: %s' "${0##*/}" "$line" >&2
		else
			say "$line"
		fi
	done
}

stop_ticker() {
	[[ -n $TICKER ]] || return 0
	kill "$TICKER" 2>/dev/null || true
	wait "$TICKER" 2>/dev/null || true
	TICKER=
	if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

# Usage: watched WHAT FAR LOG COMMAND...
# Runs COMMAND with its output in LOG. Meanwhile, prints WHAT, the progress as the
# function FAR prints it, how long the step has taken so far, and how long it took the
# last time. V=1 shows the whole output instead. COMMAND runs in a subshell with errexit
# off, so a function has to join its commands with &&.
watched() {
	local what=$1 far=$2 log=$3 status=0 start=$EPOCHSECONDS
	shift 3

	mkdir -p "${log%/*}"
	: >"$log"
	if [[ ${V:-} == 1 ]]; then
		("$@") 2>&1 | tee "$log" >&2
		return
	fi
	(SECONDS=0; ticker "$what" "$far") &
	TICKER=$!
	("$@") >"$log" 2>&1 || status=$?
	stop_ticker
	# If a step was shorter, it had almost nothing to do, and its time does not help
	# to estimate a step that is reported.
	if ((status == 0 && EPOCHSECONDS - start >= REPORT_SECONDS)); then
		remember_seconds "$what" $((EPOCHSECONDS - start))
	fi
	return "$status"
}

# Usage: long_step WHAT FAR LOG COMMAND...
# Like watched, but announces WHAT at the start, and prints the time at the end. The
# caller has to explain a failure.
long_step() {
	local start=$EPOCHSECONDS

	say "$1 ..."
	watched "$@" || return
	say "$1: done in $(duration $((EPOCHSECONDS - start)))"
}

# Prints the path of the file with the seconds that a step took the last time.
seconds_file() {
	echo "$CACHE/seconds/${1//[^A-Za-z0-9.]/-}"
}

# Usage: remember_seconds WHAT SECONDS
remember_seconds() {
	mkdir -p "$CACHE/seconds"
	echo "$2" >"$(seconds_file "$1")"
}

# Prints how many seconds a step took the last time; fails if there was none.
last_seconds() {
	cat "$(seconds_file "$1")" 2>/dev/null
}

# How many minutes all tests of each flavor take when nothing is built, on two cores
# without KVM.
declare -A TEST_MINUTES=([release]=35 [debug]=60 [rt]=25 [kcsan]=40 [small]=25
	[no-pid-ns]=15 [no-user-ns]=15 [no-net-ns]=15 [builtin]=20 [mainline]=20
	[distro]=70 [selinux]=15 [arm64-release]=35 [arm64-debug]=80)

# Usage: expected_seconds FLAVOR
# Prints how many seconds all tests of a flavor will take: as many as the last time, if
# they passed before. Fails if that is not known.
expected_seconds() {
	last_seconds "all tests, $1" ||
		{ [[ -n ${TEST_MINUTES[$1]:-} ]] && echo $((TEST_MINUTES[$1] * 60)); }
}

# The progress of steps that do not know their progress.
far_unknown() {
	echo "running"
}

# Returns whether a log shows that the network is the cause of a failure, and not the
# command. A program that sees a wrong certificate does have a network.
network_trouble() {
	! grep -qi certificate "$1" && grep -qiE 'could not (resolve|connect)|temporary failure|failed to (establish|fetch|connect|download)|unable to (connect|fetch)|connection (refused|failed|timed out)|network is unreachable|spurious network error|download of .* failed|max retries exceeded' "$1"
}

NETWORK_HINT='no network? Check the connection and http_proxy/https_proxy, then run it again'

# Usage: need_space MEGABYTES WHAT
need_space() {
	local free

	free=$(df --output=avail -BM "$CACHE" | tr -dc '0-9')
	((free >= $1)) ||
		die "not enough disk space for $2: $CACHE has $free MB free, $1 MB are needed; free some or set PROC_EVENTS_CACHE to a directory with more"
}

# Makes the cache. Refuses places that the kernel's make cannot use.
make_cache() {
	[[ $CACHE != *[[:space:]:]* ]] ||
		die "'$CACHE' contains a space or a colon, which the kernel's build cannot handle: set PROC_EVENTS_CACHE to another directory"
	mkdir -p "$LOGS" 2>/dev/null ||
		die "cannot write to $CACHE: set PROC_EVENTS_CACHE to a directory of yours"
	CACHE=$(cd "$CACHE" && pwd -P)
	LOGS=$CACHE/log
}

# Usage: lock FILE WHAT
# Waits until no other run has the lock, which is for WHAT. The lock ends with the process
# and its children, so that a killed run leaves none behind.
lock() {
	exec {LOCK}>"$1"
	flock -n "$LOCK" && return
	say "waiting for another run that is using $2 ..."
	flock -w "$LOCK_LIMIT_SECONDS" "$LOCK" ||
		die "another run has been using $2 for $(duration $LOCK_LIMIT_SECONDS): see 'fuser -v $1'"
}

# Only one run at a time changes the cache, except for the programs of the harness.
lock_cache() {
	lock "$CACHE/lock" "$CACHE"
}

# Only one run at a time builds the programs of the harness.
lock_programs() {
	lock "$CACHE/programs.lock" "$CACHE/target"
}

# Prints the directory with the programs of the harness that are made from the sources
# of this clone, whether they were built or not.
programs_directory() {
	local identity

	identity=$(
		{
			cd "$PROJECT" || exit
			find qemu-tests rust-module Documentation/interface/listener.rs -type d \
				\( -path qemu-tests/target -o -path qemu-tests/config -o -path qemu-tests/misuse \) -prune \
				-o -type f -print0 | sort -z | xargs -0 sha256sum
			cargo --version
			echo "${RUSTFLAGS:-}"
		} | sha256sum
	)
	echo "$CACHE/programs/$(of_machine "${identity:0:16}")"
}

# Lets other runs use the cache again.
unlock_cache() {
	exec {LOCK}>&-
}

# Returns whether STOCK= asks for the unpatched kernel.
stock_wanted() {
	[[ ${STOCK:-0} != 0 ]]
}

# Usage: flavor_has OPTION FLAVOR
# Returns whether the kernel of a flavor has CONFIG_PROC_EVENTS_OPTION=y in its own
# configuration, which is in addition to release. With BROADCAST, the kernel behaves like the stock
# kernel. With RUST, the handler is built in. Neither has a module.
flavor_has() {
	grep -qsx "CONFIG_PROC_EVENTS_$1=y" "$PROJECT/qemu-tests/config/$(kernel_of "$2").config"
}

# Usage: kernel_of FLAVOR
# Prints the flavor whose kernel a flavor boots: itself, unless it names another one.
kernel_of() {
	local other

	other=$(sed -n 's/^# kernel of: //p' "$PROJECT/qemu-tests/config/$1.config" 2>/dev/null) || true
	echo "${other:-$1}"
}

# Usage: kernel_parameters FLAVOR
# Prints the parameters that a flavor boots its kernel with, in addition to all others.
kernel_parameters() {
	sed -n 's/^# boot with: //p' "$PROJECT/qemu-tests/config/$1.config"
}

has_module() {
	! flavor_has BROADCAST "$1" && ! flavor_has RUST "$1"
}
