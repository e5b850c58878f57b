# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/kernel: fetches the kernel's source, and turns it into a git
# repository with two work trees, stock and patched.

# Debian's suite with the sources of all series. It keeps older sources for a while.
SUITE=trixie-backports

# The measured sizes of what the steps leave in the cache, with a margin.
DOWNLOAD_MEGABYTES=400
SOURCE_MEGABYTES=5000

download_far() {
	du -cm "$APT/package" | awk '/total/ { print $1 " of about 150 MB" }'
}

download_package() {
	cd "$APT/package" && private_apt download "linux-source-$SERIES"
}

# Downloads the Debian package with the source into $APT/package.
download_source() {
	local otherwise="or give a $SERIES source tree with KDIR="

	open_private_apt deb "$SUITE" "$otherwise"
	long_step "downloading linux-source-$SERIES" download_far "$LOGS/apt-download.log" \
		download_package || {
		network_trouble "$LOGS/apt-download.log" &&
			die "cannot download linux-source-$SERIES: $NETWORK_HINT, $otherwise"
		die "$SUITE has no linux-source-$SERIES: $(grep -m1 '^E: ' "$LOGS/apt-download.log"); $otherwise"
	}
}

# The configurations of Debian's own kernels of this series, from its package, and a file
# that names the package.
DEBIAN_CONFIGS=$CACHE/linux-config-$SERIES

unpack_debian_configs() {
	local new=$DEBIAN_CONFIGS.new package

	# dpkg-deb expands the two fields of the package.
	# shellcheck disable=SC2016
	cd "$APT/package" &&
		private_apt download "linux-config-$SERIES" &&
		package=$(echo *.deb) &&
		rm -rf "$new" "$DEBIAN_CONFIGS" &&
		mkdir -p "$new" &&
		dpkg-deb --fsys-tarfile "$package" |
		tar -x --strip-components=4 -C "$new" "./usr/src/linux-config-$SERIES" &&
		xz -d "$new"/*.xz &&
		printf '%s, SHA256 %s\n' "$(dpkg-deb -W --showformat='${Package} ${Version}' "$package")" \
			"$(hash_of <"$package")" >"$new/package" &&
		mv "$new" "$DEBIAN_CONFIGS"
}

# Provides the configuration that the flavor starts from, if it starts from Debian's.
fetch_debian_config() {
	local otherwise="or choose another flavor than $FLAVOR"

	[[ -n $DEBIAN_CONFIG ]] || return 0
	if [[ ! -e $DEBIAN_CONFIGS/package ]]; then
		open_private_apt deb "$SUITE" "$otherwise"
		long_step "fetching linux-config-$SERIES" far_unknown "$LOGS/debian-config.log" unpack_debian_configs || {
			network_trouble "$LOGS/debian-config.log" &&
				die "cannot download linux-config-$SERIES: $NETWORK_HINT, $otherwise"
			die "cannot get linux-config-$SERIES from $SUITE: $(grep -m1 '^E: ' "$LOGS/debian-config.log" || tail -n1 "$LOGS/debian-config.log"); $otherwise"
		}
		rm -rf "$APT"
	fi
	[[ -e $DEBIAN_CONFIGS/$DEBIAN_CONFIG ]] ||
		die "$(<"$DEBIAN_CONFIGS/package") has no $DEBIAN_CONFIG: correct '# base:' in qemu-tests/config/$FLAVOR.config, $otherwise"
}

source_tar() {
	if [[ -e /usr/src/linux-source-$SERIES.tar.xz ]]; then
		cat "/usr/src/linux-source-$SERIES.tar.xz"
	else
		dpkg-deb --fsys-tarfile "$APT"/package/*.deb |
			tar -xO "./usr/src/linux-source-$SERIES.tar.xz"
	fi
}

unpack_far() {
	printf '%d of about 93,000 files' "$(wc -l <"$LOGS/unpack.log")"
}

unpack_source() {
	source_tar | xz -dc | tar -xv --strip-components=1 -C "$1"
}

commit_far() {
	printf '%d of about 93,000 files' "$(wc -l <"$LOGS/commit.log")"
}

commit_source() {
	export GIT_AUTHOR_NAME=proc-events GIT_AUTHOR_EMAIL=proc-events@localhost
	export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'

	git -C "$1" init -q &&
		printf '/%s-*/\n' build module clippy >>"$1/.git/info/exclude" &&
		git_in "$1" -c core.looseCompression=1 add --verbose --force . &&
		git_in "$1" commit -q -m "Linux $(make -s -C "$1" kernelversion)" &&
		git_in "$1" tag stock
}

checkout_patched() {
	git_in "$TREE/stock" worktree prune &&
		git_in "$TREE/stock" worktree add --detach "$TREE/patched.new" stock &&
		git_in "$TREE/stock" worktree move "$TREE/patched.new" "$TREE/patched"
}

# Makes the repository and its two work trees. Each gets its name only when it is
# complete. The patched tree is made before anything is built, so that a copy of a build
# of one tree does not look out of date in the other.
fetch_source() {
	if [[ ! -d $TREE ]]; then
		need_space $((DOWNLOAD_MEGABYTES + SOURCE_MEGABYTES)) "the kernel's source"
		[[ -e /usr/src/linux-source-$SERIES.tar.xz ]] || download_source
		rm -rf "$TREE.new"
		mkdir -p "$TREE.new/stock"
		long_step "unpacking the kernel's source" unpack_far "$LOGS/unpack.log" \
			unpack_source "$TREE.new/stock" ||
			die "unpacking failed: $(tail -n1 "$LOGS/unpack.log"); the whole output is in $LOGS/unpack.log"
		rm -rf "$APT"
		long_step "making it a git repository" commit_far "$LOGS/commit.log" \
			commit_source "$TREE.new/stock" ||
			die "git failed: $(tail -n1 "$LOGS/commit.log"); the whole output is in $LOGS/commit.log"
		mv "$TREE.new" "$TREE"
	fi
	if [[ ! -d $TREE/patched ]]; then
		rm -rf "$TREE/patched.new"
		long_step "checking out the tree to patch" far_unknown "$LOGS/checkout.log" checkout_patched ||
			die "git failed: $(tail -n1 "$LOGS/checkout.log"); the whole output is in $LOGS/checkout.log"
	fi
}

copy_tree() {
	git_in "$TREE/stock" worktree prune &&
		git_in "$TREE/stock" worktree add --no-checkout --detach "$SOURCE.new" \
			"$(git_in "$TREE/patched" rev-parse HEAD)" &&
		find "$TREE/patched" -mindepth 1 -maxdepth 1 ! -name .git ! -name 'build-*' \
			! -name 'module-*' ! -name 'clippy-*' -exec cp -a -t "$SOURCE.new" {} + &&
		git_in "$SOURCE.new" reset --quiet &&
		git_in "$TREE/stock" worktree move "$SOURCE.new" "$SOURCE"
}

# Makes SOURCE, another work tree like the patched one. It is copied and not checked
# out, so that a copy of a build does not look out of date.
copy_patched() {
	need_space "$SOURCE_MEGABYTES" "another tree"
	rm -rf "$SOURCE.new"
	long_step "copying the patched tree" far_unknown "$LOGS/copy.log" copy_tree ||
		die "copying failed: $(tail -n1 "$LOGS/copy.log"); the whole output is in $LOGS/copy.log"
}
