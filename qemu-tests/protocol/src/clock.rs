// SPDX-License-Identifier: GPL-2.0
//! The instruction counter of a guest whose clock counts instructions: the time stamp counter, or
//! arm64's virtual counter.

/// How many instructions were executed.
#[inline]
pub fn instructions() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: Every x86-64 processor has the instruction, and Linux allows it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let count;
        // SAFETY: Every arm64 processor has the register, and Linux allows reading it.
        unsafe {
            std::arch::asm!("mrs {0}, cntvct_el0", out(reg) count, options(nomem, nostack));
        }
        count
    }
}
