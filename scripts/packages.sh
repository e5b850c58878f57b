# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034  # other parts of scripts/setup use the variables
#
# Part of scripts/setup: all Debian packages that it installs, or unpacks into the cache.

# Returns whether the system is Debian 12, whose names of packages differ.
debian_12() {
	# shellcheck source=/dev/null
	(. /etc/os-release && [[ $ID == debian && $VERSION_ID == 12 ]]) 2>/dev/null
}

# Prints what the system needs: in each line, a program or file, and the package that
# contains it. Nothing is installed if the program or file is there without the package.
needs() {
	cat <<-END
		gcc                                   gcc
		make                                  make
		/usr/include/stdlib.h                 libc6-dev
		flex                                  flex
		bison                                 bison
		bc                                    bc
		/usr/include/libelf.h                 libelf-dev
		/usr/include/zlib.h                   zlib1g-dev
		/usr/include/openssl/ssl.h            libssl-dev
		pkg-config                            pkgconf
		pahole                                pahole
		kmod                                  kmod
		cpio                                  cpio
		perl                                  perl
		git                                   git
		xz                                    xz-utils
		rsync                                 rsync
		python3                               python3
		/usr/lib/python3*/ensurepip            python3-venv
		/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
		/etc/ssl/certs/ca-certificates.crt    ca-certificates
		clang-19                              clang-19
		llvm-nm-19                            llvm-19
		ld.lld-19                             lld-19
		shellcheck                            shellcheck
		mandoc                                mandoc
		qemu-system-x86_64                    qemu-system-x86
		busybox                               busybox-static
		forkstat                              forkstat
		extrace                               extrace
		cgexec                                cgroup-tools
		cgrulesengd                           cgroup-tools
		keepalived                            keepalived
		pstree                                psmisc
		bwrap                                 bubblewrap
		crun                                  crun
		unshare                               util-linux
		ps                                    procps
		strace                                strace
		flock                                 util-linux
		ssh                                   openssh-client
		start-stop-daemon                     dpkg
		/usr/lib/*/libwrap.so.0               libwrap0
	END
	rust_needs
}

# The kernel needs rustc, and the source of its library. In Debian 12, the normal
# packages are too old for the kernel. The "web" packages are updated to what browsers
# need.
rust_needs() {
	if debian_12; then
		cat <<-END
			/usr/bin/rustc                        rustc-web
			/usr/lib/rustlib/src/rust/library     rust-web-src
			/usr/bin/rustdoc                      rustc-web
			/usr/bin/rustfmt                      rustfmt-web
			/usr/bin/clippy-driver                rust-web-clippy
			cargo                                 cargo-web
		END
	else
		cat <<-END
			/usr/bin/rustc                        rustc
			/usr/lib/rustlib/src/rust/library     rust-src
			/usr/bin/rustdoc                      rustc
			/usr/bin/rustfmt                      rustfmt
			/usr/bin/clippy-driver                rust-clippy
			cargo                                 cargo
			/usr/lib/*/libwtmpdb.so.0             libwtmpdb0
		END
	fi
}

# All others are unpacked into the cache.

# OpenSSH's server: if it was installed, it would be started on this machine.
SSHD_PACKAGE=openssh-server

# A newer QEMU for Debian 12, from its backports.
QEMU_PACKAGES=(qemu-system-x86 qemu-system-data seabios)

# What only the tests need: see scripts/clients.sh.
STRESS_NG_PACKAGE=stress-ng
NETLINK_GO_PACKAGES=(golang-go golang-github-vishvananda-netlink-dev)
APPARMOR_PACKAGE=apparmor
SELINUX_PACKAGE=checkpolicy
# In addition to lib32gcc-N-dev, where N is the version of the system's gcc.
COMPAT_PACKAGE=libc6-dev-i386

# What ARCH=arm64 needs: see scripts/setup-arm64.sh.
ARM64_QEMU_PACKAGE=qemu-system-arm

# The packages that tests and commands in the guest use, and those that programs for the
# guest are linked with. Their dependencies are added.
ARM64_PACKAGES=(
	base-files base-passwd bash coreutils dash findutils gawk grep hostname iproute2
	kmod libc-bin login mount passwd perl-base procps sed sysvinit-utils util-linux
	bubblewrap busybox-static cgroup-tools crun dpkg extrace forkstat keepalived
	openssh-client openssh-server psmisc strace
	libc6-dev libelf-dev zlib1g-dev linux-libc-dev
)

# The system's Rust, and its library, whose package for arm64 has to be of the same
# version.
if debian_12; then
	ARM64_PACKAGES+=(libgcc-12-dev)
	RUST_PACKAGE=rustc-web RUST_LIBRARY_PACKAGE=libstd-rust-web-dev
else
	ARM64_PACKAGES+=(libgcc-14-dev)
	RUST_PACKAGE=rustc RUST_LIBRARY_PACKAGE=libstd-rust-dev
fi
