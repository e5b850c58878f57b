# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of scripts/kernel: what sparse, W=1 and rustdoc say of the code in the
# series. Nothing is run again that was run on the same series.

# Prints the files that the series touches and whose names match.
touched_files() {
	cat "${PATCHES[@]}" | git apply --numstat | cut -f3 | grep -E "$1" | sort -u
}

# Usage: once STAMP COMMAND...
# Runs COMMAND, unless it has succeeded on this series with these programs.
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

# A build without Rust, of a few files only. The hooks are there without it only to see
# whether they compile.
set_up_lint() {
	mkdir -p "$BUILD"
	cat >"$BUILD/no-rust.config" <<-END
		# CONFIG_RUST is not set
		CONFIG_COMPILE_TEST=y
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

# Sets SPARSE: the system's one or, where that is missing or too old for the
# kernel, as in Debian 12 and 13, a newer one from the source.
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

# Writes to $BUILD/messages what is said of the C files that the series touches.
lint_files() {
	local objects file

	set_up_lint
	# Those that the series adds are not there without it.
	mapfile -t objects < <(touched_files '\.c$' | grep -vE '^(rust|Documentation)/' |
		while read -r file; do [[ ! -e $SOURCE/$file ]] || echo "${file%c}o"; done)
	(cd "$BUILD" && rm -f "${objects[@]}")
	long_step "compiling with sparse and W=1 ($TITLE)" far_unknown "$BUILD.log" \
		kernel_make C=1 W=1 CHECK="$SPARSE" "${objects[@]}" ||
		explain_failure "$BUILD.log" "compiling with sparse and W=1"
	# Lines move: only what is said of which file counts.
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

# Documents the kernel's crates, and fails if that says anything of a file that
# the series touches.
document_kernel() {
	local log=$BUILD.rustdoc.log

	long_step "rustdoc of the kernel" far_unknown "$log" kernel_make rustdoc ||
		explain_failure "$log" "rustdoc"
	! touched_files '\.rs$' | sed 's/^/--> (..\/)?/' | grep -B1 -E -f - "$log" >&2 ||
		die "rustdoc complains of the abstractions: see $log"
}

# The kernel's make has no rule for a module's documentation: take the command
# that has compiled it.
document_module() {
	local out=${BUILD%/*}/module-$NAME log=$BUILD.rustdoc.log command

	command=$(sed -n 's/^savedcmd_[^ ]* := //p' "$out/rust-module/.proc_events_main.o.cmd" |
		sed -E "s|; .*||; s|^(.*) $RUSTC |\1 ${RUSTDOC:-/usr/bin/rustdoc} |; s/--(remap-path-scope|emit)=[^ ]*//g; s/ (-o|--out-dir) [^ ]+//g")
	if ! (cd "$out" && RUSTC_BOOTSTRAP=1 bash -c "$command -Arustdoc::private_intra_doc_links -Zunstable-options \
		--document-private-items --output $out/doc") >"$log" 2>&1 || grep -qE "$COMPLAINT" "$log"; then
		explain_failure "$log" "rustdoc of the module" "$COMPLAINT"
	fi
}

document() {
	build
	once "$BUILD/.proc-events-documented" document_kernel
	build_module >/dev/null
	document_module
}
