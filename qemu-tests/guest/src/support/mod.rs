// SPDX-License-Identifier: GPL-2.0
//! The library of the tests, the fuzzer, the loads and the benchmark: what they do to processes, and
//! how they compare what a listener receives.

pub mod apparmor;
pub mod background_load;
pub mod cgroup;
pub mod clone3;
pub mod container;
pub mod descriptors;
pub mod directory;
pub mod ends;
pub mod exec_variants;
pub mod fault_injection;
pub mod follower;
pub mod idle_processes;
pub mod kernel_log;
pub mod modprobe;
pub mod module;
pub mod namespace_user;
pub mod perf;
pub mod polling;
pub mod process;
pub mod procfs;
pub mod program;
pub mod scenario;
pub mod scheduling;
pub mod security;
pub mod selinux;
pub mod sender;
pub mod sequence_numbers;
pub mod sessions;
pub mod slabs;
pub mod socket_filter;
pub mod state_dump;
pub mod stock;
pub mod threads;
pub mod tracer;
