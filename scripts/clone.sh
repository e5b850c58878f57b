# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What scripts/mutants, scripts/planted and scripts/patches share: a clone of the
# project in which the module, or the series, is another one, and a tree of the
# kernel to build it in, which is not the one that others use.

# Usage: make_clone TREE
# Sets scratch, clone, and source, the patched kernel. All goes at the end, and
# what scripts/kernel built with --tree TREE.
make_clone() {
	work_tree=$1
	source=$("$PROJECT/scripts/kernel" source)
	scratch=$(mktemp -d)
	clone=$scratch/clone
	trap remove_clone EXIT
	git clone --quiet "$PROJECT" "$clone"
}

remove_clone() {
	local built=${source%/*}/$work_tree

	stop_ticker
	rm -rf "$scratch"
	[[ ! -d $built ]] || git -C "$source" worktree remove --force "$built"
}
