# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What scripts/mutants and scripts/planted share: to break the module, or the
# series, in a clone.

# shellcheck source=scripts/clone.sh
. "$PROJECT/scripts/clone.sh"

# Usage: is_of_kernel FILE
# The kernel's files are in folders, those of the module are not.
is_of_kernel() {
	[[ $1 == */* ]]
}

# Edits a file of the module or, by one more patch, of the kernel; fails if that
# changes nothing.
# Usage: break_file FILE SED...
break_file() {
	git -C "$clone" clean --quiet --force
	git -C "$clone" checkout --quiet .
	if is_of_kernel "$1"; then break_kernel "$@"; else break_module "$@"; fi
}

break_module() {
	local file=$1
	shift

	sed -Ei "${@/#/-e}" "$clone/rust-module/$file"
	! git -C "$clone" diff --quiet
}

break_kernel() {
	local file=$1 a=$scratch/a/$1 b=$scratch/b/$1 patch=$clone/linux-patch/$SERIES/9999-broken.patch
	shift

	mkdir -p "${a%/*}" "${b%/*}"
	cp "$source/$file" "$a"
	sed -E "${@/#/-e}" "$a" >"$b"
	! cmp --quiet "$a" "$b" || return
	{
		printf 'From: nobody <nobody@localhost>\nSubject: [PATCH] break it\n\n---\n'
		# Its status says that the two differ.
		(cd "$scratch" && git diff --no-index --no-prefix "a/$file" "b/$file") || true
	} >"$patch"
}
