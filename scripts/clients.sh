# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2016  # $clients is a wrapper's own
#
# Part of scripts/setup: programs and libraries of other projects that use process
# events, for the tests in the VM (qemu-tests/guest/src/tests/others.rs). Those that no
# package of the system contains, or whose packages have many dependencies, are put into
# $CLIENTS, and are found through $CLIENTS/bin. None of them runs on this machine.
#
# cn_pec of LTP is left out, because no package contains it.
#
# It also provides what other tests need, but what is not worth an installation: the
# programs that compile policies of AppArmor and SELinux for confined.rs, and a 32-bit C
# library for compat.rs.

CLIENTS=$CACHE/clients

# Usage: has_client NAME [VERSION]
# A client that is elsewhere in the path counts, too, unless VERSION is given.
has_client() {
	if (($# == 1)); then PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; else
		[[ -x $CLIENTS/bin/$1 && -e $CLIENTS/$1/.version-$2 ]]
	fi
}

# Returns whether something that Debian's packages contain is missing.
packages_missing() {
	! has_client stress-ng ||
		! has_client netlink-go-test ||
		! has_client apparmor_parser ||
		! has_client checkpolicy ||
		! can_build_compat
}

clients_missing() {
	packages_missing ||
		! has_client python-pyroute2 "$PYROUTE2_VERSION" ||
		! has_client proc-connector-test "$PROC_CONNECTOR_VERSION"
}

# Usage: add_client NAME COMMAND
# Makes $CLIENTS/bin/NAME run a command. In the command, $clients is the directory of
# all clients, which has another name in a container.
add_client() {
	mkdir -p "$CLIENTS/bin" &&
		cat >"$CLIENTS/bin/$1.new" <<-END &&
			#!/bin/sh
			clients=\$(dirname "\$(dirname "\$0")")
			$2 "\$@"
		END
		chmod 755 "$CLIENTS/bin/$1.new" &&
		mv "$CLIENTS/bin/$1.new" "$CLIENTS/bin/$1"
}

# Usage: unpack_packages DIR PACKAGE...
# Unpacks packages and those of their dependencies that this system lacks. Installs
# nothing.
unpack_packages() {
	local dir=$1 package

	rm -rf "$dir" &&
		mkdir -p "$dir/archives/partial" &&
		apt-get -qy -o APT::Sandbox::User=root -o Debug::NoLocking=1 \
			-o Dir::Cache::archives="$dir/archives" install --download-only \
			--no-install-recommends "${@:2}" || return
	for package in "$dir"/archives/*.deb; do
		# There is no such file if the system has all packages.
		[[ ! -e $package ]] || dpkg-deb -x "$package" "$dir" || return
	done
	rm -rf "$dir/archives"
}

# Copies only those libraries that the program really loads. Others are there because of
# dependencies, and are large.
make_stress_ng() {
	local packages=$CLIENTS/packages libraries to=$CLIENTS/stress-ng

	unpack_packages "$packages" "$STRESS_NG_PACKAGE" || return
	rm -rf "$to" && mkdir -p "$to/lib" || return
	libraries=$(find "$packages/usr/lib" -name '*.so.*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:)
	LD_LIBRARY_PATH=$libraries ldd "$packages/usr/bin/stress-ng" >"$to/libraries" || return
	if grep 'not found' "$to/libraries"; then return 1; fi
	awk -v dir="$packages/" 'index($3, dir) == 1 { print $3 }' "$to/libraries" |
		xargs -r cp -Lt "$to/lib" &&
		cp "$packages/usr/bin/stress-ng" "$to/" &&
		rm -rf "$packages" &&
		add_client stress-ng 'LD_LIBRARY_PATH=$clients/stress-ng/lib exec "$clients/stress-ng/stress-ng"'
}

# The package contains the tests of the library. Go itself is not kept. The library
# opens a socket of each protocol in SupportedNlFamilies, even for a program that only
# wants process events. The kernels of the tests have only the first of these protocols.
make_netlink_go_test() {
	local packages=$CLIENTS/packages to=$CLIENTS/netlink-go-test go library

	unpack_packages "$packages" "${NETLINK_GO_PACKAGES[@]}" || return
	go=$packages/usr/lib/go
	[[ -d $go ]] || go=$(go env GOROOT) || return
	library=$packages/usr/share/gocode/src/github.com/vishvananda/netlink
	[[ -d $library ]] || cp -r --parents "${library#"$packages"}" "$packages" || return
	cat >"$library/protocols_test.go" <<-END || return
		package netlink

		import (
			"github.com/vishvananda/netlink/nl"
			"golang.org/x/sys/unix"
		)

		func init() { nl.SupportedNlFamilies = []int{unix.NETLINK_ROUTE} }
	END
	rm -rf "$to" && mkdir -p "$to" &&
		env GOROOT="$go" GOPATH="$packages/usr/share/gocode:/usr/share/gocode" GO111MODULE=off \
			GOCACHE="$packages/cache" GOFLAGS= CGO_ENABLED=0 GOTOOLCHAIN=local \
			"$go/bin/go" test -c -o "$to/netlink.test" github.com/vishvananda/netlink &&
		rm -rf "$packages" &&
		add_client netlink-go-test 'exec "$clients/netlink-go-test/netlink.test"'
}

# Usage: unpack_alone DIR PACKAGE...
# Unpacks packages without their dependencies.
unpack_alone() {
	local package

	rm -rf "$1" && mkdir -p "$1" && cd "$1" || return
	apt-get -q -o APT::Sandbox::User=root download "${@:2}" || return
	for package in *.deb; do dpkg-deb -x "$package" . || return; done
}

# Usage: make_from_package PACKAGE PROGRAM
# Takes one program out of a package. It needs no library but libc.
make_from_package() {
	local name=$2 packages=$CLIENTS/packages

	(unpack_alone "$packages" "$1") && mkdir -p "$CLIENTS/$name" || return
	# The releases of Debian have it in different directories.
	find "$packages" -path "*bin/$name" -exec cp -t "$CLIENTS/$name" {} + &&
		[[ -x $CLIENTS/$name/$name ]] &&
		rm -rf "$packages" &&
		add_client "$name" "exec \"\$clients/$name/$name\""
}

make_apparmor_parser() {
	make_from_package "$APPARMOR_PACKAGE" apparmor_parser
}

make_checkpolicy() {
	make_from_package "$SELINUX_PACKAGE" checkpolicy
}

# The C library and the files of gcc for 32-bit programs, without gcc-multilib, which
# cannot be installed beside compilers for some other machines.
make_compat() {
	local packages=$CLIENTS/packages version

	version=$(gcc -dumpversion) && version=${version%%.*} || return
	(unpack_alone "$packages" "$COMPAT_PACKAGE" "lib32gcc-$version-dev") || return
	rm -rf "$COMPAT" && mkdir -p "$COMPAT"/{lib,include} || return
	cp "$packages"/usr/lib32/*.[oa] "$packages/usr/lib/gcc/x86_64-linux-gnu/$version/32"/*.[oa] "$COMPAT/lib/" &&
		cp -r "$packages/usr/include/x86_64-linux-gnu/." "$COMPAT/include/" &&
		rm -rf "$packages" || return
	# The last line of the log says what is wrong.
	"${COMPAT_CC[@]}" -x c -o /dev/null - <<<'int main(void) { return 0; }'
}

make_pyroute2() {
	local to=$CLIENTS/python-pyroute2

	rm -rf "$to" &&
		python3 -m venv "$CLIENTS/venv" &&
		"$CLIENTS/venv/bin/pip" install --disable-pip-version-check --no-deps --target "$to" \
			"pyroute2==$PYROUTE2_VERSION" &&
		rm -rf "$CLIENTS/venv" &&
		add_client python-pyroute2 'PYTHONPATH=$clients/python-pyroute2 PYTHONDONTWRITEBYTECODE=1 exec python3' &&
		touch "$to/.version-$PYROUTE2_VERSION"
}

# The integration tests of the crate as published, built in its own source.
make_proc_connector_test() {
	local to=$CLIENTS/proc-connector-test build=$CLIENTS/build source

	rm -rf "$to" "$build" &&
		mkdir -p "$to" "$build/src" &&
		printf '[package]\nname = "fetch"\nversion = "0.0.0"\n\n[workspace]\n\n[dependencies]\nproc-connector = "=%s"\n' \
			"$PROC_CONNECTOR_VERSION" >"$build/Cargo.toml" &&
		touch "$build/src/lib.rs" &&
		cargo vendor --manifest-path "$build/Cargo.toml" "$build/vendor" >/dev/null &&
		source=$build/proc-connector &&
		mv "$build/vendor/proc-connector" "$source" &&
		echo '[workspace]' >>"$source/Cargo.toml" &&
		CARGO_TARGET_DIR=$build/target cargo test --no-run --locked --test integration_test \
			--manifest-path "$source/Cargo.toml" &&
		find "$build/target/debug/deps" -name 'integration_test-*' -executable \
			-exec cp {} "$to/integration_test" \; &&
		[[ -x $to/integration_test ]] &&
		rm -rf "$build" &&
		add_client proc-connector-test 'exec "$clients/proc-connector-test/integration_test"' &&
		touch "$to/.version-$PROC_CONNECTOR_VERSION"
}

# Usage: get_client WHAT FROM LOG COMMAND
# FROM is the program that downloads WHAT.
get_client() {
	local what=$1 from=$2 log=$LOGS/$3.log

	long_step "fetching $what" far_unknown "$log" "$4" && return
	network_trouble "$log" && die "$from cannot download $what: $NETWORK_HINT"
	die "$from cannot get $what: $(grep -m1 -iE '^(E: |error)|not found|: cannot ' "$log" || tail -n1 "$log"); the whole output is in $log"
}

# Usage: needs_apt PROGRAM WHAT
needs_apt() {
	has_client "$1" || command -v apt-get >/dev/null ||
		die "this machine has no apt; put $2 as $1 into your PATH, then run it again"
}

install_clients() {
	clients_missing || return 0
	# In containers, other users than the owner read the files.
	umask 022
	if packages_missing; then
		needs_apt stress-ng "stress-ng"
		needs_apt netlink-go-test "the tests of github.com/vishvananda/netlink ('go test -c')"
		needs_apt apparmor_parser "AppArmor's parser"
		needs_apt checkpolicy "the compiler of SELinux' policies"
		can_build_compat || command -v apt-get >/dev/null ||
			die "gcc -m32 -static cannot build programs here, and this machine has no apt: install a 32-bit C library, then run it again"
		refresh_packages
	fi
	has_client stress-ng ||
		get_client "stress-ng" apt-get stress-ng make_stress_ng
	has_client netlink-go-test ||
		get_client "the tests of vishvananda/netlink" apt-get netlink-go-test make_netlink_go_test
	has_client apparmor_parser ||
		get_client "AppArmor's parser" apt-get apparmor make_apparmor_parser
	has_client checkpolicy ||
		get_client "checkpolicy" apt-get checkpolicy make_checkpolicy
	can_build_compat ||
		get_client "a 32-bit C library" apt-get compat make_compat
	has_client python-pyroute2 "$PYROUTE2_VERSION" ||
		get_client "pyroute2 $PYROUTE2_VERSION" pip pyroute2 make_pyroute2
	has_client proc-connector-test "$PROC_CONNECTOR_VERSION" ||
		get_client "the tests of proc-connector $PROC_CONNECTOR_VERSION" cargo proc-connector make_proc_connector_test
}
