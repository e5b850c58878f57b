# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by scripts/mutants and scripts/planted: breaks the module or the series in a
# clone.

# shellcheck source=scripts/clone.sh
. "$PROJECT/scripts/clone.sh"

MISUSE=misuse

# Usage: is_of_kernel FILE
# Files of the kernel have a directory in their path, files of the module do not.
is_of_kernel() {
	[[ $1 == */* ]]
}

# Prints the tests' names, a line each. MISUSE is the check of that name.
all_tests() {
	"$("$PROJECT/scripts/harness")/proc-events-guest" list
	echo "$MISUSE"
}

# Sets what check_break needs: source, the patched kernel, and tests, their names.
begin_checks() {
	source=$("$PROJECT/scripts/kernel" source)
	tests=$(all_tests)
}

# Usage: lines_changed FILE SED
# Prints how many lines of the file an edit changes.
lines_changed() {
	local file=$PROJECT/rust-module/$1 edited

	if is_of_kernel "$1"; then file=$source/$1; fi
	edited=$(sed -E "$2" "$file") || return
	diff "$file" - <<<"$edited" | grep -c '^>' || true
}

# Checks, without a build, that a break can be made and that a test may notice it: there
# are tests for it, and each edit changes as many lines as intended. Prints what is
# wrong.
# Usage: check_break NAME TESTS LINES FILE SED...
check_break() {
	local name=$1 part=$2 wanted=$3 file=$4 edit changed
	shift 4

	grep -qF -e "$part" <<<"$tests" || {
		echo "NO TEST   $name: no test's name contains '$part'"
		return 1
	}
	for edit; do
		changed=$(lines_changed "$file" "$edit") || return
		((changed == wanted)) || {
			echo "NOT MADE  $name: $edit changes $changed lines of $file, not $wanted"
			return 1
		}
	done
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
