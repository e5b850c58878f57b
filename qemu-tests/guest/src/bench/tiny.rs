// SPDX-License-Identifier: GPL-2.0
//! A minimal program, which is executed. It writes the count of instructions at its first
//! instruction to its standard output.

use std::arch::global_asm;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io, slice};

/// The machine type in an ELF header.
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Puts the program together from its code.
macro_rules! program {
    ($($code:literal),* $(,)?) => {
        global_asm!(
            ".pushsection .rodata.proc_events_tiny, \"a\"",
            ".globl proc_events_tiny_start, proc_events_tiny_end",
            ".set proc_events_tiny_base, 0x400000",
            ".balign 8",
            "proc_events_tiny_start:",
            // The ELF header: 64 bits, little endian, executable, one program header.
            ".byte 0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0",
            ".short 2, {machine}",
            ".long 1",
            ".quad proc_events_tiny_base + (2f - proc_events_tiny_start)",
            ".quad 64, 0",
            ".long 0",
            ".short 64, 56, 1, 0, 0, 0",
            // The program header: all of the file, readable and executable.
            ".long 1, 5",
            ".quad 0, proc_events_tiny_base, proc_events_tiny_base",
            ".quad proc_events_tiny_end - proc_events_tiny_start",
            ".quad proc_events_tiny_end - proc_events_tiny_start",
            ".quad 0x1000",
            "2:",
            $($code,)*
            "proc_events_tiny_end:",
            ".popsection",
            machine = const MACHINE,
        );
    };
}

#[cfg(target_arch = "x86_64")]
program!(
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "push rax",
    // write(1, stack, 8)
    "mov eax, 1",
    "mov edi, 1",
    "mov rsi, rsp",
    "mov edx, 8",
    "syscall",
    // exit(0)
    "mov eax, 60",
    "xor edi, edi",
    "syscall",
);

#[cfg(target_arch = "aarch64")]
program!(
    "mrs x0, cntvct_el0",
    "str x0, [sp, #-16]!",
    // write(1, stack, 8)
    "mov x8, #64",
    "mov x0, #1",
    "mov x1, sp",
    "mov x2, #8",
    "svc #0",
    // exit(0)
    "mov x8, #93",
    "mov x0, #0",
    "svc #0",
);

unsafe extern "C" {
    static proc_events_tiny_start: u8;
    static proc_events_tiny_end: u8;
}

/// Writes the program to a file.
pub fn install(path: &Path) -> io::Result<()> {
    let (start, end) = (
        &raw const proc_events_tiny_start,
        &raw const proc_events_tiny_end,
    );
    // SAFETY: All bytes between the two labels are in one section, which is never written.
    let program = unsafe { slice::from_raw_parts(start, end.addr() - start.addr()) };
    fs::write(path, program)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_program_writes_its_count_and_ends() {
        let path = std::env::temp_dir().join(format!("proc-events-tiny.{}", std::process::id()));
        install(&path).unwrap();
        let output = Command::new(&path).output();
        fs::remove_file(&path).unwrap();
        let output = output.unwrap();
        assert!(output.status.success());
        let count: [u8; 8] = output.stdout.try_into().unwrap();
        assert_ne!(u64::from_ne_bytes(count), 0);
    }
}
