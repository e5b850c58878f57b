// SPDX-License-Identifier: GPL-2.0
//! Compiles the eBPF programs, which are embedded in the program.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    const SOURCE: &str = "src/peer.bpf.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang-19".to_owned());
    // The names that libbpf and Debian use for the machine.
    let (machine, headers) = match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        "aarch64" => {
            // The headers of another machine are in the root of its guest.
            println!("cargo:rerun-if-env-changed=PROC_EVENTS_ROOT");
            let root = env::var("PROC_EVENTS_ROOT").unwrap_or_default();
            ("arm64", format!("{root}/usr/include/aarch64-linux-gnu"))
        }
        _ => ("x86", "/usr/include/x86_64-linux-gnu".to_owned()),
    };
    let object = Path::new(&variable("OUT_DIR")).join("peer.bpf.o");
    let status = Command::new(&clang)
        .args(["-O2", "-g", "-Wall", "-Werror", "--target=bpf", "-mcpu=v3"])
        .arg(format!("-D__TARGET_ARCH_{machine}"))
        .args(["-c", SOURCE, "-o"])
        .arg(object)
        // libbpf's own headers, and where Debian has <asm/types.h>.
        .args(["-I", &variable("DEP_BPF_INCLUDE")])
        .args(["-I", &headers])
        .status();
    match status {
        Ok(status) => assert!(status.success(), "{clang} cannot compile {SOURCE}"),
        Err(error) => {
            panic!("cannot run {clang}: {error} (scripts/setup installs it, CLANG= names another)")
        }
    }
}
