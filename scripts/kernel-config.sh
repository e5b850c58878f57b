# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/kernel: chooses the programs and the options, and makes sure that the
# kernel uses them.

CONFIGS=$PROJECT/qemu-tests/config

# Every make needs the programs as arguments: if one of them is missing, the kernel
# turns CONFIG_RUST off without a message.
kernel_make() {
	make -C "$SOURCE" O="$BUILD" "${MAKE_VARIABLES[@]}" "$@"
}

choose_tools() {
	local variable

	RUSTC=${RUSTC:-/usr/bin/rustc}
	MAKE_VARIABLES=(
		RUSTC="$RUSTC" HOSTRUSTC="${HOSTRUSTC:-$RUSTC}"
		RUSTDOC="${RUSTDOC:-/usr/bin/rustdoc}" RUSTFMT="${RUSTFMT:-/usr/bin/rustfmt}"
		CLIPPY_DRIVER="${CLIPPY_DRIVER:-/usr/bin/clippy-driver}"
		BINDGEN="${BINDGEN:-$CACHE/bindgen/bin/bindgen}"
		LOCALVERSION="$( ((STOCK)) && echo -stock || echo -proc-events)"
		KBUILD_BUILD_USER=proc-events KBUILD_BUILD_HOST=localhost
	)
	if [[ ${V:-} == 1 ]]; then MAKE_VARIABLES+=(V=1); fi
	# A flavor may set more variables, such as another compiler.
	while read -r variable; do
		MAKE_VARIABLES+=("$variable")
	done < <(sed -n 's/^# make: //p' "${FRAGMENTS[@]}")
	# The kernel's programs for the guest find the C library of the guest in its
	# root.
	if [[ $MACHINE != x86_64 ]]; then
		MAKE_VARIABLES+=(USERCFLAGS="--sysroot=$GUEST_ROOT" USERLDFLAGS="--sysroot=$GUEST_ROOT -fuse-ld=lld-19")
	fi
}

# Prints text that changes when one of the programs for the build is replaced.
tools_identity() {
	local tool

	printf '%s\n' "${MAKE_VARIABLES[@]}"
	for tool in gcc ld clang-19 pahole "$RUSTC" "${BINDGEN:-$CACHE/bindgen/bin/bindgen}"; do
		stat -Lc '%n %s %Y' "$(command -v "$tool")" 2>/dev/null || true
	done
}

# Sets FRAGMENTS, and BASE to the flavor that this flavor is on top of: release, unless
# it names another one. For another machine than x86-64, each fragment is followed by
# the fragment of that machine. Sets DEBIAN_CONFIG to the name of Debian's configuration
# that the fragments start from, or to nothing if they start from tinyconfig.
choose_fragments() {
	local below=$FLAVOR name

	[[ -e $CONFIGS/$FLAVOR.config ]] ||
		die "there is no flavor '$FLAVOR': choose one of $(flavors)"
	# scripts/kernel uses it.
	# shellcheck disable=SC2034
	BASE=$(base_of "$FLAVOR")
	FRAGMENTS=()
	for ((;;)); do
		name=$CONFIGS/$MACHINE/$below.config
		[[ ! -e $name ]] || FRAGMENTS=("$name" "${FRAGMENTS[@]}")
		FRAGMENTS=("$CONFIGS/$below.config" "${FRAGMENTS[@]}")
		[[ $below != release ]] || break
		below=$(base_of "$below")
	done
	DEBIAN_CONFIG=$(sed -n 's/^# base: //p' "${FRAGMENTS[@]}")
	[[ -z $DEBIAN_CONFIG || $MACHINE == x86_64 ]] ||
		die "the flavor $FLAVOR is for x86-64 only, since its base is $DEBIAN_CONFIG: leave out ARCH=$MACHINE, or choose another flavor"
}

flavors() {
	local file

	for file in "$CONFIGS"/*.config; do basename "$file" .config; done | paste -sd' '
}

base_of() {
	local base

	base=$(sed -n 's/^# on top of: //p' "$CONFIGS/$1.config")
	echo "${base:-release}"
}

# Prints the options of the series that this source does not know. These are missing in
# the stock kernel, and in a kernel with only the first patches of the series.
unknown_options() {
	sed -nE 's/^(# )?CONFIG_(PROC_EVENTS_[A-Z]+)(=| is not set$).*/\2/p' "${FRAGMENTS[@]}" | sort -u |
		grep -vxFf <(sed -n 's/^config //p' "$SOURCE/drivers/connector/Kconfig") || true
}

# Prints the options that the fragments set and the configuration does not have. If an
# option is named twice, the last value counts.
lost_options() {
	local unknown

	unknown=$(unknown_options | sed 's/^/CONFIG_/' | paste -sd' ')
	awk -v unknown=" $unknown " '
		/^# CONFIG_[A-Z0-9_]+ is not set$/ { name = $2; value = "n" }
		/^CONFIG_[A-Z0-9_]+=/ { name = $0; sub(/=.*/, "", name); value = substr($0, length(name) + 2) }
		name == "" { next }
		FILENAME != ARGV[ARGC - 1] { wanted[name] = value }
		FILENAME == ARGV[ARGC - 1] { given[name] = value }
		{ name = "" }
		END {
			for (name in wanted)
				if (wanted[name] != (name in given ? given[name] : "n") &&
				    !index(unknown, " " name " "))
					print name "=" wanted[name]
		}
	' "${FRAGMENTS[@]}" "$BUILD/.config" | sort
}

# Writes the configuration that the fragments change. What Debian builds as modules is
# disabled: the VM would not have these modules, and they would only take time to build.
start_config() {
	if [[ -z $DEBIAN_CONFIG ]]; then
		kernel_make tinyconfig
	else
		# scripts/kernel-source.sh sets the directory.
		# shellcheck disable=SC2153
		sed -E 's/^(CONFIG_[A-Za-z0-9_]+)=m$/# \1 is not set/' "$DEBIAN_CONFIGS/$DEBIAN_CONFIG" >"$BUILD/.config"
	fi
}

write_config() {
	# merge_config.sh leaves files in the current directory.
	cd "$BUILD" && start_config &&
		"$SOURCE/scripts/kconfig/merge_config.sh" -m -O "$BUILD" "$BUILD/.config" "${FRAGMENTS[@]}" &&
		kernel_make olddefconfig
}

# Prints on one line why Rust cannot be used, in the words of the kernel's build.
rust_verdict() {
	kernel_make rustavailable 2>&1 | sed -n 's/^\*\*\* *//p' | grep -v -e '^$' -e Documentation -e '^on how to' | sed 's| See output and docs below for details:||' |
		paste -sd' ' | cut -c1-400
}

configure() {
	local lost

	long_step "configuring ($TITLE)" far_unknown "$LOGS/config.log" write_config ||
		die "configuring failed: $(grep -m1 -E "$ERROR_LINE" "$LOGS/config.log"); the whole output is in $LOGS/config.log"
	lost=$(lost_options)
	if grep -qx 'CONFIG_RUST=y' <<<"$lost"; then
		die "this kernel cannot have CONFIG_RUST with the programs at hand (set RUSTC=, BINDGEN= to others): $(rust_verdict)"
	fi
	[[ -z $lost ]] ||
		die "these options of $(for f in "${FRAGMENTS[@]}"; do shown "$f"; printf ' '; done)did not survive the configuration of $SOURCE: $(paste -sd' ' <<<"$lost")"
}
