// SPDX-License-Identifier: GPL-2.0
//! Compiles the eBPF programs, which the program carries in itself.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    const SOURCE: &str = "src/peer.bpf.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang-19".to_owned());
    let object = Path::new(&variable("OUT_DIR")).join("peer.bpf.o");
    let status = Command::new(&clang)
        .args(["-O2", "-g", "-Wall", "-Werror", "--target=bpf", "-mcpu=v3"])
        .args(["-D__TARGET_ARCH_x86", "-c", SOURCE, "-o"])
        .arg(object)
        // libbpf's own headers, and where Debian has <asm/types.h>.
        .args(["-I", &variable("DEP_BPF_INCLUDE")])
        .args(["-I", "/usr/include/x86_64-linux-gnu"])
        .status();
    match status {
        Ok(status) => assert!(status.success(), "{clang} cannot compile {SOURCE}"),
        Err(error) => {
            panic!("cannot run {clang}: {error} (scripts/setup installs it, CLANG= names another)")
        }
    }
}
