# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/setup: what ARCH=arm64 needs in addition. Everything is unpacked into
# the cache, and nothing is installed: Debian's packages for arm64, of which the root of
# the guest is made, the standard library for arm64 of this machine's Rust, and QEMU for
# arm64.

# The measured size, with a margin.
ARM64_MEGABYTES=1500

# Prints the path of a file whose name depends on the list of packages: if the list
# changes, the root is made again.
arm64_root_stamp() {
	echo "$GUEST_ROOT/.proc-events-$(printf '%s ' "${ARM64_PACKAGES[@]}" | sha256sum | cut -c1-16)"
}

ARM64_RUST=$CACHE/arm64/rust
ARM64_QEMU=$CACHE/arm64/qemu

# Runs apt as on a machine with packages for arm64, and with none of them installed.
arm64_apt() {
	apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
		-o Dir::Etc::sourcelist="$APT/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State="$APT" -o Dir::State::status="$APT/status" -o Dir::State::lists="$APT/lists" \
		-o Dir::Cache="$APT/cache" -o APT::Update::Error-Mode=any "$@"
}

# Usage: open_arm64_apt
# Reads the lists of packages for arm64 in the suites that the packages of this machine
# are from.
open_arm64_apt() {
	local suites suite otherwise="or leave out ARCH=arm64"

	command -v apt-get >/dev/null || die "without apt nothing can be fetched for arm64: leave out ARCH=arm64"
	# shellcheck disable=SC2016
	suites=$(apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(COMPONENT) $(REPO_URI) $(RELEASE)' |
		sed -n 's/^Packages Debian main //p' | sort -u)
	[[ -n $suites ]] ||
		die "apt knows no suite of Debian: run 'apt-get update' as root, $otherwise"
	rm -rf "$APT"
	mkdir -p "$APT"/{lists,cache,package}
	: >"$APT/status"
	while read -r suite; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $suite main"
	done <<<"$suites" >"$APT/sources.list"
	long_step "looking into Debian's arm64" far_unknown "$LOGS/apt-lists.log" arm64_apt update || {
		network_trouble "$LOGS/apt-lists.log" &&
			die "cannot read Debian's lists for arm64: $NETWORK_HINT, $otherwise"
		die "cannot read Debian's lists for arm64: $(grep -m1 '^E: ' "$LOGS/apt-lists.log"); $otherwise"
	}
}

# Usage: fetch_arm64 WHAT LOG COMMAND...
fetch_arm64() {
	local what=$1 log=$2
	shift 2

	long_step "fetching $what" far_unknown "$log" "$@" || {
		network_trouble "$log" && die "cannot download $what: $NETWORK_HINT"
		die "cannot make $what: $(grep -m1 '^E: ' "$log" || tail -n1 "$log"); the whole output is in $log"
	}
}

# Makes the directories that are links into /usr before anything is unpacked, because a
# package may have files in either place.
make_root_layout() {
	local directory

	mkdir -p "$1"/{usr/{bin,sbin,lib},dev,proc,sys,run,tmp,root,home,srv,opt,mnt,var/{log,tmp,cache,lib}} || return
	for directory in bin sbin lib; do
		ln -s "usr/$directory" "$1/$directory" || return
	done
	chmod 1777 "$1/tmp" "$1/var/tmp"
}

# Does what the scripts of the packages would do, as far as it is needed: adds users,
# and names that are alternatives.
complete_root() {
	local root=$1

	cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd" &&
		cp "$root/usr/share/base-passwd/group.master" "$root/etc/group" &&
		echo 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' >>"$root/etc/passwd" &&
		sed -i 's|^\(root:[^:]*\):.*|root:x:0:0:root:/root:/bin/bash|' "$root/etc/passwd" &&
		sed 's/^\([^:]*\):.*/\1:*:::::::/' "$root/etc/passwd" >"$root/etc/shadow" &&
		echo '127.0.0.1 localhost' >"$root/etc/hosts" &&
		touch "$root/etc/fstab" &&
		mkdir -p "$root/etc/lvm" &&
		ln -sf gawk "$root/usr/bin/awk" &&
		ln -s ../bin/busybox "$root/usr/sbin/poweroff" &&
		{ [[ -e $root/usr/bin/sh ]] || ln -s dash "$root/usr/bin/sh"; }
}

unpack_arm64_root() {
	local new=$GUEST_ROOT.new package

	rm -rf "$new" &&
		arm64_apt -y --no-install-recommends --download-only install "${ARM64_PACKAGES[@]}" &&
		make_root_layout "$new" || return
	for package in "$APT"/cache/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$package" |
			tar -x --keep-directory-symlink --no-same-owner -C "$new" || return
	done
	# No program reads these files in the guest.
	rm -rf "$new"/usr/share/{doc,man,locale,info}
	complete_root "$new" &&
		touch "$new/$(basename "$(arm64_root_stamp)")" &&
		rm -rf "$GUEST_ROOT" &&
		mv "$new" "$GUEST_ROOT"
}

rust_version() {
	# shellcheck disable=SC2016
	dpkg-query -W -f '${Version}' "$RUST_PACKAGE" 2>/dev/null
}

# The library has to be of exactly the same version as the compiler.
arm64_rust_stamp() {
	echo "$ARM64_RUST/.version-$(rust_version)"
}

unpack_arm64_rust() {
	rm -rf "$ARM64_RUST.new" &&
		cd "$APT/package" &&
		arm64_apt download "$RUST_LIBRARY_PACKAGE=$(rust_version)" &&
		mkdir "$ARM64_RUST.new" &&
		dpkg-deb -x "$RUST_LIBRARY_PACKAGE"_*.deb "$ARM64_RUST.new" &&
		touch "$ARM64_RUST.new/$(basename "$(arm64_rust_stamp)")" &&
		rm -rf "$ARM64_RUST" &&
		mv "$ARM64_RUST.new" "$ARM64_RUST"
}

# QEMU for arm64 is from the same suite as the one for x86-64, because it uses the
# libraries of that.
unpack_arm64_qemu() {
	local new=$ARM64_QEMU.new

	rm -rf "$new" &&
		cd "$APT/package" &&
		private_apt download "$ARM64_QEMU_PACKAGE" &&
		mkdir "$new" &&
		dpkg-deb -x "$ARM64_QEMU_PACKAGE"_*.deb "$new" &&
		complete_qemu "$new" aarch64 "$ARM64_QEMU" &&
		rm -rf "$ARM64_QEMU" &&
		mv "$new" "$ARM64_QEMU"
}

arm64_suite() {
	# shellcheck source=/dev/null
	if debian_12; then echo bookworm-backports; else (. /etc/os-release && echo "$VERSION_CODENAME"); fi
}

arm64_is_missing() {
	[[ $MACHINE == arm64 ]] || return
	[[ ! -e $(arm64_root_stamp) || ! -e $(arm64_rust_stamp) || ! -x $ARM64_QEMU/bin/qemu-system-aarch64 ]]
}

install_arm64() {
	arm64_is_missing || return 0
	[[ -n $(rust_version) ]] ||
		die "no Rust for arm64: Debian's package $RUST_PACKAGE is not installed, and only that has a library for arm64 to fetch; install it, or leave out ARCH=arm64"
	need_space "$ARM64_MEGABYTES" "setting up for arm64"
	# The guest also has other users.
	umask 022
	mkdir -p "$CACHE/arm64"
	if [[ ! -e $(arm64_root_stamp) || ! -e $(arm64_rust_stamp) ]]; then
		open_arm64_apt
		[[ -e $(arm64_rust_stamp) ]] ||
			fetch_arm64 "Rust's library for arm64, of $RUST_PACKAGE $(rust_version); if Debian has a newer one, upgrade it" \
				"$LOGS/arm64-rust.log" unpack_arm64_rust
		[[ -e $(arm64_root_stamp) ]] ||
			fetch_arm64 "the root of arm64 guests" "$LOGS/arm64-root.log" unpack_arm64_root
	fi
	if [[ ! -x $ARM64_QEMU/bin/qemu-system-aarch64 ]]; then
		open_private_apt deb "$(arm64_suite)" "or leave out ARCH=arm64"
		fetch_arm64 "QEMU for arm64" "$LOGS/arm64-qemu.log" unpack_arm64_qemu
	fi
	rm -rf "$APT"
}
