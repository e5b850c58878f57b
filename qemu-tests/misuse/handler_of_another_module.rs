// SPDX-License-Identifier: GPL-2.0
//! A handler belongs to the module that contains it.
//!
//! Refused: error[E0603]

use kernel::{
    module::ThisModule,
    LocalModule, //
};

pub fn owner() -> &'static ThisModule {
    kernel::module::this_module::<LocalModule>()
}
