// SPDX-License-Identifier: GPL-2.0
//! Directories for the files of tests.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use crate::child::own_pid;

/// A directory of a test, which is removed with all that is in it when this is dropped.
pub struct Directory(PathBuf);

impl Directory {
    /// Makes a directory whose name begins with this one.
    pub fn new(name: &str) -> io::Result<Self> {
        let directory = env::temp_dir().join(format!("{name}-{}", own_pid()));
        fs::create_dir(&directory)?;
        Ok(Self(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left: {error}", self.0.display());
        }
    }
}
