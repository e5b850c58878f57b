# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/kernel: the messages of sparse, W=1 and rustdoc for the code in the
# series. A check that has succeeded on the same series is not run again.

# Prints the files that the series touches and whose names match the pattern.
touched_files() {
	cat "${PATCHES[@]}" | git apply --numstat | cut -f3 | grep -E "$1" | sort -u
}

# Usage: once STAMP COMMAND...
# Runs COMMAND, unless it has already succeeded on this series with these programs.
once() {
	local stamp=$1 key
	shift

	key=$( (echo "$IDENTITY"; touched_files .; "${SPARSE:-:}" --version; tools_identity) | hash_of)
	if [[ -n $IDENTITY && -e $stamp && $(<"$stamp") == "$key" ]]; then
		return
	fi
	rm -f "$stamp"
	"$@"
	echo "$key" >"$stamp"
}

# Sets up a build without Rust, of a few files only, and with the options without which
# these files do not compile. Without Rust, the hooks are built only with
# CONFIG_COMPILE_TEST, to check that they compile.
set_up_lint() {
	mkdir -p "$BUILD"
	cat >"$BUILD/no-rust.config" <<-END
		# CONFIG_RUST is not set
		CONFIG_COMPILE_TEST=y
		CONFIG_AUDIT=y
		# CONFIG_WERROR is not set
	END
	FRAGMENTS+=("$BUILD/no-rust.config")
	configure
	long_step "preparing ($TITLE)" far_unknown "$BUILD.log" kernel_make -j"$JOBS" prepare ||
		explain_failure "$BUILD.log" "preparing to lint"
}

make_sparse() {
	cd "$APT/package" &&
		private_apt source --download-only sparse &&
		tar -xf sparse_*.orig.tar.* --strip-components=1 &&
		make -j"$JOBS" HAVE_SQLITE=no HAVE_LLVM=no HAVE_GTK=no HAVE_LIBXML=no sparse &&
		mkdir -p "$CACHE/sparse" &&
		mv sparse "$CACHE/sparse/"
}

# Sets SPARSE to the system's sparse or, if that is missing or too old for the kernel,
# as in Debian 12 and 13, to a newer one that is built from source.
choose_sparse() {
	local otherwise="or install a newer sparse yourself"

	for SPARSE in sparse "$CACHE/sparse/sparse"; do
		[[ $(sh "$SOURCE/scripts/checker-valid.sh" "$SPARSE" 2>/dev/null) != 1 ]] || return 0
	done
	open_private_apt deb-src sid "$otherwise"
	long_step "building sparse" far_unknown "$LOGS/sparse.log" make_sparse ||
		die "sparse cannot be built: see $LOGS/sparse.log, $otherwise"
	rm -rf "$APT"
}

# Writes the messages about the C files that the series touches to $BUILD/messages.
lint_files() {
	local objects file

	set_up_lint
	# Files that the series adds do not exist in the stock kernel.
	mapfile -t objects < <(touched_files '\.c$' | grep -vE '^(rust|Documentation|tools)/' |
		while read -r file; do [[ ! -e $SOURCE/$file ]] || echo "${file%c}o"; done)
	(cd "$BUILD" && rm -f "${objects[@]}")
	long_step "compiling with sparse and W=1 ($TITLE)" far_unknown "$BUILD.log" \
		kernel_make C=1 W=1 CHECK="$SPARSE" "${objects[@]}" ||
		explain_failure "$BUILD.log" "compiling with sparse and W=1"
	# Lines move, so the messages are compared without line numbers.
	sed -nE 's/^(\.\.\/)?([^ :]+):[0-9]+:[0-9]+: (warning|error)/\2: \3/p' "$BUILD.log" |
		sort >"$BUILD/messages"
}

# Prints the path of a file with the messages.
lint() {
	choose_sparse
	BUILD=${BUILD%/*}/build-lint TITLE="$( ((STOCK)) && echo stock || echo patched), lint"
	once "$BUILD/.proc-events-linted" lint_files
	echo "$BUILD/messages"
}

# Runs rustdoc on the kernel's crates. Fails if there is a message about a file that the
# series touches.
document_kernel() {
	local log=$BUILD.rustdoc.log

	long_step "rustdoc of the kernel" far_unknown "$log" kernel_make rustdoc ||
		explain_failure "$log" "rustdoc"
	no_complaints_about_series "$log" rustdoc
}

# Usage: compile_like DIR OBJECT INPUT PROGRAM ARGUMENT...
# Runs PROGRAM in DIR with the arguments that rustc had for OBJECT, except INPUT, a
# regular expression, and those for its output. The kernel's make has no rule for that.
compile_like() {
	local directory=$1 object=$2 input=$3 program=$4 command
	shift 4

	command=$(sed -n 's/^savedcmd_[^ ]* := //p' "$directory/${object%/*}/.${object##*/}.cmd" |
		sed -E "s|; .*||; s|^(.*) $RUSTC |\1 $program |; s/--(remap-path-scope|emit|crate-type)[= ][^ ]*//g; s/ (-o|--out-dir) [^ ]+//g; s# $input( |\$)# #")
	(cd "$directory" && RUSTC_BOOTSTRAP=1 bash -c "$command \"\$@\"" bash "$@")
}

# Usage: compile_like_module PROGRAM ARGUMENT...
compile_like_module() {
	compile_like "${BUILD%/*}/module-$NAME" rust-module/proc_events_main.o '[^ ]*/proc_events_main\.rs' "$@"
}

# Fails if there is a message about a file that the series touches. The log is of the
# kernel's crates.
no_complaints_about_series() {
	! touched_files '\.rs$' | sed 's/^/--> (..\/)?/' | grep -B1 -E -f - "$1" >&2 ||
		die "$2 complains about the abstractions: see $1"
}

# With make CLIPPY=1, the crate would be compiled in the place of the one that rustc
# compiled, and again for the next build.
clippy_kernel() {
	local log=$BUILD.clippy.log out=${BUILD%/*}/clippy-kernel-$NAME

	mkdir -p "$out"
	CLIPPY_CONF_DIR=$SOURCE compile_like "$BUILD" rust/kernel.o '[^ ]*/kernel/lib\.rs' \
		"${CLIPPY_DRIVER:-/usr/bin/clippy-driver}" "$SOURCE/rust/kernel/lib.rs" \
		--crate-type rlib --emit metadata --out-dir "$out" >"$log" 2>&1 ||
		explain_failure "$log" "clippy of the abstractions"
	rm -r "$out"
	no_complaints_about_series "$log" clippy
}

rustfmt_kernel() {
	local file files

	mapfile -t files < <(touched_files '\.rs$')
	for file in "${files[@]}"; do
		"${RUSTFMT:-/usr/bin/rustfmt}" --check --edition 2021 --config-path "$SOURCE/.rustfmt.toml" "$SOURCE/$file" >&2 ||
			die "rustfmt would change $file"
	done
}

style() {
	build
	rustfmt_kernel
	once "$BUILD/.proc-events-clippy" clippy_kernel
}

document_module() {
	local out=${BUILD%/*}/module-$NAME log=$BUILD.rustdoc.log

	if ! compile_like_module "${RUSTDOC:-/usr/bin/rustdoc}" "$PROJECT/rust-module/proc_events_main.rs" \
		-Arustdoc::private_intra_doc_links -Zunstable-options --document-private-items \
		--output "$out/doc" >"$log" 2>&1 || grep -qE "$COMPLAINT" "$log"; then
		explain_failure "$log" "rustdoc of the module" "$COMPLAINT"
	fi
}

# Compiles each file in qemu-tests/misuse. Such a file has the error of the compiler that
# is expected, or none, if it compiles. Prints where the result is another one.
check_misuse() {
	local out=${BUILD%/*}/misuse-$NAME file expected refusals wrong=0

	build
	build_module >/dev/null
	mkdir -p "$out"
	for file in "$PROJECT"/qemu-tests/misuse/*.rs; do
		expected=$(sed -n 's|^//! Refused: ||p' "$file")
		refusals=$(compile_like_module "$RUSTC" "$file" --crate-name misuse --crate-type rlib \
			--emit metadata --out-dir "$out" 2>&1 | grep '^error' | grep -v '^error: aborting') || true
		if [[ -z $refusals && -n $expected ]]; then
			echo "$(shown "$file") compiles: expected $expected"
		elif [[ -n $refusals ]] && { [[ -z $expected ]] || grep -qvF "$expected" <<<"$refusals"; }; then
			echo "$(shown "$file"): expected ${expected:-no error}, got $refusals"
		else
			continue
		fi
		wrong=1
	done
	((!wrong))
}

document() {
	build
	once "$BUILD/.proc-events-documented" document_kernel
	build_module >/dev/null
	document_module
}
