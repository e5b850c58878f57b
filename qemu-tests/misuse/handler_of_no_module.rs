// SPDX-License-Identifier: GPL-2.0
//! A handler belongs to a module, and safe code cannot make up a module.
//!
//! Refused: error[E0133]

use kernel::{
    module::{
        ModuleMetadata,
        ThisModule, //
    },
    prelude::*,
    str::CStr, //
};

pub struct NoModule;

impl ModuleMetadata for NoModule {
    const NAME: &'static CStr = c"none";
    const THIS_MODULE: ThisModule = ThisModule::from_ptr(core::ptr::null_mut());
}
