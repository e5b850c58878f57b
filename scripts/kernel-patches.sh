# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/kernel: applies the series to the fetched source, or to a tree of the
# user.

PATCH_DIR=$PROJECT/linux-patch/$SERIES

# With these, git am does not need the user's name, and the same series always gives the
# same commit.
export GIT_COMMITTER_NAME=proc-events GIT_COMMITTER_EMAIL=proc-events@localhost

read_series() {
	mapfile -t PATCHES < <(compgen -G "$PATCH_DIR/*.patch" | sort)
	((${#PATCHES[@]})) || die "there are no patches in $(shown "$PATCH_DIR")"
	SERIES_HASH=$(cat "${PATCHES[@]}" | hash_of)
}

# Usage: apply_series TREE NAME
# Applies the series with git am. On failure, leaves the tree as it was, and says which
# patch does not apply, and in which file.
apply_series() {
	local dir=$1 name=$2 log=$LOGS/am.log patch file

	if git_in "$dir" am --quiet --committer-date-is-author-date "${PATCHES[@]}" >"$log" 2>&1; then
		return
	fi
	patch=${PATCHES[$(cat "$(git_in "$dir" rev-parse --path-format=absolute --git-path rebase-apply/next)") - 1]}
	file=$(sed -n 's/^error: patch failed: //p; s/^error: \(.*\): \(does not exist\|already exists\|No such file\|patch does not apply\).*/\1/p' "$log" | head -n1)
	git_in "$dir" am --abort
	die "$(shown "$patch") does not apply to $name: ${file:-$(head -n1 "$log")}"
}

# Makes a commit with stock and the series, in a work tree that has only the files that
# the series touches.
commit_series() {
	local scratch=$TREE/series

	git_in "$TREE/stock" worktree remove --force "$scratch" 2>/dev/null || rm -rf "$scratch"
	git_in "$TREE/stock" worktree prune
	git_in "$TREE/stock" worktree add -q --no-checkout --detach "$scratch" stock
	cat "${PATCHES[@]}" | git_in "$scratch" apply --numstat | cut -f3 | sed 's|^|/|' |
		git_in "$scratch" sparse-checkout set --no-cone --stdin
	git_in "$scratch" checkout -q --detach stock
	apply_series "$scratch" "Linux $(sed -n 's/^Linux //p' <(git_in "$TREE/stock" log -1 --format=%s stock))"
	git_in "$TREE/stock" update-ref "refs/series/$SERIES_HASH" "$(git_in "$scratch" rev-parse HEAD)"
	git_in "$TREE/stock" worktree remove --force "$scratch"
}

# Updates SOURCE to the current series. Files that did not change keep their time
# stamps, so that little is built again.
patch_source() {
	local ref=refs/series/$SERIES_HASH updating=$SOURCE.updating commit force=()

	commit=$(git_in "$TREE/stock" rev-parse -q --verify "$ref") || {
		say "applying $(shown "$PATCH_DIR") (${#PATCHES[@]} patches) ..."
		commit_series
		commit=$(git_in "$TREE/stock" rev-parse --verify "$ref")
	}
	if [[ $(git_in "$SOURCE" rev-parse HEAD) == "$commit" && ! -e $updating ]]; then
		return
	fi
	# A run that was killed below leaves a partly updated tree and the lock of git
	# behind. Any other difference was made by a person, and is kept.
	if [[ -e $updating ]]; then
		force=(--force)
		rm -f "$(git_in "$SOURCE" rev-parse --path-format=absolute --git-path index.lock)"
	elif ! git_in "$SOURCE" diff --quiet HEAD; then
		die "$SOURCE was edited by hand ($(git_in "$SOURCE" diff --name-only HEAD | head -n1)): turn the change into a patch, then run 'git -C $SOURCE checkout .'"
	fi
	touch "$updating"
	git_in "$SOURCE" checkout -q --detach "${force[@]}" "$commit" ||
		die "cannot check out the patched source in $SOURCE"
	rm "$updating"
}

# The functions below are for trees of the user.

check_tree() {
	local dir=$1 variable=$2

	[[ -d $dir ]] || die "$variable=$dir is not a directory: give a kernel source tree"
	if [[ ! -e $dir/Kconfig ]] || ! grep -qs '^PATCHLEVEL = ' "$dir/Makefile"; then
		die "$variable=$dir is not a kernel source tree (no Kconfig, or no version in its Makefile)"
	fi
	[[ ! -e $dir/.config && ! -e $dir/include/config ]] ||
		die "$variable=$dir holds a build: run 'make -C $dir mrproper' (this deletes its .config), or give a clean tree"
}

tree_version() {
	sed -n 's/^VERSION = //p; s/^PATCHLEVEL = //p' "$1/Makefile" | paste -sd.
}

is_git_tree() {
	[[ -e $1/.git ]]
}

is_clean() {
	git_in "$1" diff --quiet HEAD 2>/dev/null
}

already_patched() {
	cat "${PATCHES[@]}" |
		GIT_CEILING_DIRECTORIES=${1%/*} git_in "$1" apply --reverse --check 2>/dev/null
}

# Makes sure that the user's tree has the series.
patch_tree() {
	local dir=$1 version

	version=$(tree_version "$dir")
	if already_patched "$dir"; then
		say "$dir already has the patches"
		return
	fi
	is_git_tree "$dir" ||
		die "KDIR=$dir is not a git tree, so it is not patched for you: run 'cat $PATCH_DIR/*.patch | patch -p1 -d $dir', or give a git tree"
	is_clean "$dir" ||
		die "KDIR=$dir has changes that are not committed: commit or stash them, then run it again"
	[[ ! -e $(git_in "$dir" rev-parse --path-format=absolute --git-path rebase-apply) ]] ||
		die "KDIR=$dir is in the middle of a git am or rebase: finish or abort it, then run it again"
	if [[ $version == "$SERIES" ]]; then
		apply_series "$dir" "KDIR=$dir"
	else
		apply_series "$dir" "KDIR=$dir, which is Linux $version while $SERIES is supported"
	fi
	say "applied ${#PATCHES[@]} patches to $dir"
}
