# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/check and scripts/test-commands: steps that are checks, each with a
# result, which is printed and recorded.

# Usage: begin_steps [--results FILE]
# Sets results, the file of the results of the steps. --results adds them to FILE, see
# qemu-tests/protocol/src/results.rs, and leaves it to the caller to count them.
begin_steps() {
	RESULTS_ARE_OURS=0
	if [[ ${1:-} == --results ]]; then
		results=${2:?}
		shift 2
	else
		results=$(mktemp)
		RESULTS_ARE_OURS=1
		trap 'stop_ticker; rm -f "$results"' EXIT
	fi
	(($# == 0)) || die "takes no arguments but --results FILE"
}

# Prints how many steps passed and failed, and fails if one failed, unless the caller
# counts them.
end_steps() {
	((!RESULTS_ARE_OURS)) || count_results "$results"
}

# Usage: step NAME COMMAND...
# A command that cannot check anything on this machine exits with SKIPPED, and prints why
# in a line that begins with "-    ".
step() {
	local name=$1 start=$EPOCHSECONDS log status=0 took
	shift

	log=$LOGS/check/${name//[^A-Za-z0-9.]/-}.log
	watched "$name" far_unknown "$log" "$@" || status=$?
	took=$(duration $((EPOCHSECONDS - start)))
	case $status in
	0)
		record_result "$results" "$name" passed
		printf 'ok   %s (%s)\n' "$name" "$took"
		sed -n '/^-    /p' "$log"
		;;
	"$SKIPPED")
		record_result "$results" "$name" skipped "$(sed -n 's/^-    //p' "$log" | paste -sd' ')"
		sed -n '/^-    /p' "$log"
		;;
	*)
		record_result "$results" "$name" failed "its output says why"
		printf 'FAIL %s (%s)\n' "$name" "$took"
		sed 's/^/     | /' "$log"
		;;
	esac
}
