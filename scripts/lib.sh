# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# What the scripts share: where things live, messages, progress of long steps,
# the lock of the cache. Sourced, never run. Standard output belongs to results
# (a path, a count): everything said to the user goes to standard error.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${PROC_EVENTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/proc-events}
LOGS=$CACHE/log

# What set-up unpacks and does not install is found like everything else.
PATH=$CACHE/qemu/bin:$PATH:$CACHE/openssh/usr/sbin:$CACHE/clients/bin

# The kernel that is built, and the folder of its patches in linux-patch/.
SERIES=${SERIES:-7.3}

# The machine of the VM. What is not of x86-64 has a name of its own in the cache, and
# everything of x86-64 has the name that it would have without others.
MACHINE=${ARCH:-x86_64}
# As the kernel's make calls it.
[[ $MACHINE != x86 ]] || MACHINE=x86_64
# A kernel's make would take it from the environment, where it says more than the
# default does.
[[ $MACHINE != x86_64 ]] || unset ARCH

# Programs and their versions that set-up puts into the cache.
BINDGEN_VERSION=0.73.2
VIRTME_NG_VERSION=1.42
SPHINX_VERSION=9.0.4
PYROUTE2_VERSION=0.9.7
PROC_CONNECTOR_VERSION=0.3.0

# Another run may be doing a whole build from nothing.
LOCK_LIMIT_SECONDS=7200

# The variables of a make that calls us are meant for it, not for the kernel's
# make or for cargo.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

# Our own git repositories must not depend on the user's settings (hooks,
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

# The root of an arm64 guest, which set-up makes of Debian's packages.
GUEST_ROOT=$CACHE/arm64/root
if [[ $MACHINE == arm64 ]]; then
	PATH=$CACHE/arm64/qemu/bin:$PATH
	export PROC_EVENTS_ROOT=$GUEST_ROOT
fi

# Usage: of_machine NAME
# Prints what a flavor's NAME is called for the machine: for its directories, logs, counts.
of_machine() {
	if [[ $MACHINE == x86_64 ]]; then echo "$1"; else echo "$MACHINE-$1"; fi
}

# Prints a number of seconds as 7s or 3m07s.
duration() {
	if (($1 < 60)); then printf '%ds' "$1"; else printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); fi
}

# Usage: record_result FILE NAME VERDICT
# Adds a result to a file of results, see qemu-tests/protocol/src/results.rs. VERDICT
# is "passed", or why it failed, in plain words.
record_result() {
	local verdict='"passed"'

	[[ $3 == passed ]] || verdict="{\"failed\":$(json_string "$3")}"
	printf '{"trial":{"name":%s,"verdict":%s}}\n' "$(json_string "$2")" "$verdict" >>"$1"
}

# A text without control characters.
json_string() {
	local text=${1//\\/\\\\}

	printf '"%s"' "${text//\"/\\\"}"
}

# Usage: count_results [--failed] FILE...
# Prints "N passed, N failed", or the last number alone, of files of results. Fails if
# anything failed, or nothing passed. Without a runner that can count, something failed.
count_results() {
	local count status=0

	count=$("$CACHE/target/release/proc-events-vm" count "$@") || status=$?
	if ((status > 1)) || [[ -z $count ]]; then
		count="0 passed, 1 failed" status=1
		[[ $1 != --failed ]] || count=1
	fi
	echo "$count"
	return "$status"
}

# Prints a file's path as a reader of the clone would write it.
shown() {
	printf '%s' "${1#"$PROJECT"/}"
}

# Sleeps without a child process: a killed child would keep our standard error
# open, and a pipeline behind us would wait for it.
pause() {
	read -rt "$1" <> <(:) || true
}

TICKER=

# How often a step is reported on where that takes a line each.
REPORT_SECONDS=10

# Reports on a step until it is stopped: every second on a terminal, in place;
# else every ten seconds, on a line of its own.
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
# Runs COMMAND with its output in LOG. Meanwhile says WHAT, what the function
# FAR prints about how far it is, how long it has been, and was the last time. V=1 shows the whole
# output instead. COMMAND runs in a subshell, and where errexit is off: a
# function joins its commands with &&.
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
	# A shorter time found all but done, and says nothing of one that is reported on.
	if ((status == 0 && EPOCHSECONDS - start >= REPORT_SECONDS)); then
		remember_seconds "$what" $((EPOCHSECONDS - start))
	fi
	return "$status"
}

# Usage: long_step WHAT FAR LOG COMMAND...
# The same, with WHAT announced at the start, and its time at the end. A failure
# is the caller's to explain.
long_step() {
	local start=$EPOCHSECONDS

	say "$1 ..."
	watched "$@" || return
	say "$1: done in $(duration $((EPOCHSECONDS - start)))"
}

# Prints the file with the seconds that a step took the last time.
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

# For steps that cannot tell how far they are.
far_unknown() {
	echo "running"
}

# Whether a log shows that the network, not the command, is at fault. Who gets as
# far as a certificate that does not fit has a network.
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

# Makes the cache, refusing places that the kernel's make cannot use.
make_cache() {
	[[ $CACHE != *[[:space:]:]* ]] ||
		die "'$CACHE' contains a space or a colon, which the kernel's build cannot handle: set PROC_EVENTS_CACHE to another directory"
	mkdir -p "$LOGS" 2>/dev/null ||
		die "cannot write to $CACHE: set PROC_EVENTS_CACHE to a directory of yours"
	CACHE=$(cd "$CACHE" && pwd -P)
	LOGS=$CACHE/log
}

# One run at a time changes the cache. The lock goes away with the process and
# its children, so a killed run leaves none behind.
lock_cache() {
	exec {LOCK}>"$CACHE/lock"
	flock -n "$LOCK" && return
	say "waiting for another run that is using $CACHE ..."
	flock -w "$LOCK_LIMIT_SECONDS" "$LOCK" ||
		die "another run has been using $CACHE for $(duration $LOCK_LIMIT_SECONDS): see 'fuser -v $CACHE/lock'"
}

# Lets others use the cache again.
unlock_cache() {
	exec {LOCK}>&-
}

# Whether STOCK= asks for the unpatched kernel.
stock_wanted() {
	[[ ${STOCK:-0} != 0 ]]
}

# Usage: flavor_has OPTION FLAVOR
# Whether a flavor asks for CONFIG_PROC_EVENTS_OPTION=y beyond what release does. With
# BROADCAST it is as the stock kernel, with RUST it has the handler built in: neither has
# a module.
flavor_has() {
	grep -qsx "CONFIG_PROC_EVENTS_$1=y" "$PROJECT/qemu-tests/config/$2.config"
}

has_module() {
	! flavor_has BROADCAST "$1" && ! flavor_has RUST "$1"
}
