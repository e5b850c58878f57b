// SPDX-License-Identifier: GPL-2.0
//! Why the unpatched kernel fails tests, or cannot run them, where several tests share a reason.

pub const NO_NETWORK_NAMESPACES: &str = "LISTEN from another network namespace is refused";

pub const NO_MODULE: &str = "cn_proc is built in, there is no module";

pub const NO_SESSION_END: &str = "there is no such event";

pub const NO_FLAGS: &str = "requests have 4 or 8 bytes, and others are not answered";

pub const NO_STATE: &str = "there is no such request";

pub const FIRST_THREAD_ENDS_PROCESS: &str =
    "the end of the first thread is reported as that of its process";
