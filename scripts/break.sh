# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by scripts/mutants and scripts/planted: breaks the module or the series in a
# clone.

# shellcheck source=scripts/clone.sh
. "$PROJECT/scripts/clone.sh"

# Usage: is_of_kernel FILE
# Files of the kernel have a directory in their path, files of the module do not.
is_of_kernel() {
	[[ $1 == */* ]]
}

# Edits a file of the module, or a file of the kernel by adding a patch. Fails if the
# edit changes nothing.
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
		# git diff fails because the two files differ.
		(cd "$scratch" && git diff --no-index --no-prefix "a/$file" "b/$file") || true
	} >"$patch"
}
