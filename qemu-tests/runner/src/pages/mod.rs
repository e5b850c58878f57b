// SPDX-License-Identifier: GPL-2.0
//! Presents results: tables and counts for people, and pages in Markdown.

mod contract;
pub mod count;
pub mod flavors;
pub mod number;
pub mod report;
mod summary;
