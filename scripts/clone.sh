# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by scripts/mutants, scripts/planted and scripts/patches: a clone of the project
# with a changed module or series, and a separate kernel tree to build it in.

# Usage: make_clone TREE
# Sets scratch, clone, and source, which is the patched kernel. The clone is deleted at
# the end, with the tree that scripts/kernel made for --tree TREE.
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
