# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/kernel and scripts/setup: fetches packages of a newer suite with an
# apt directory of its own, so that the system's apt never learns of the suite.

APT=$CACHE/apt

private_apt() {
	apt-get -q -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$APT/sources.list" \
		-o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$APT/lists" \
		-o Dir::Cache="$APT/cache" -o APT::Update::Error-Mode=any "$@"
}

# Prints the mirror that the system's apt uses for the release of the system.
debian_mirror() {
	local codename

	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016
	apt-get indextargets "$@" --format '$(REPO_URI) $(RELEASE)' |
		awk -v codename="$codename" '$2 == codename { print $1; exit }'
}

# Usage: open_private_apt TYPE SUITE OTHERWISE
# Reads the lists of the packages of a suite (TYPE deb) or of their sources (deb-src),
# and makes the directory $APT/package for them. OTHERWISE says what else the user can
# do.
open_private_apt() {
	local type=$1 suite=$2 otherwise=$3 mirror

	command -v apt-get >/dev/null ||
		die "without apt nothing can be fetched from Debian's $suite: install apt, $otherwise"
	rm -rf "$APT"
	mkdir -p "$APT"/{lists,cache,package}
	mirror=$(debian_mirror)
	if [[ -z $mirror ]]; then
		# The system's own lists were never fetched, or were deleted.
		long_step "asking which mirror to use" far_unknown "$LOGS/apt-mirror.log" \
			apt-get -q -o APT::Sandbox::User=root -o Dir::State::lists="$APT/lists" update || true
		mirror=$(debian_mirror -o Dir::State::lists="$APT/lists")
		[[ -n $mirror ]] || die "apt knows no Debian mirror: $NETWORK_HINT, $otherwise"
	fi
	echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
		>"$APT/sources.list"
	long_step "looking into Debian's $suite" far_unknown "$LOGS/apt-lists.log" private_apt update || {
		network_trouble "$LOGS/apt-lists.log" &&
			die "cannot read $suite from $mirror: $NETWORK_HINT, $otherwise"
		die "cannot read $suite from $mirror: $(grep -m1 '^E: ' "$LOGS/apt-lists.log"); $otherwise"
	}
}
