// SPDX-License-Identifier: GPL-2.0
//! Values as JSON.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes a value.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers, strings and lists of them can always be encoded")
}

/// Decodes a value.
pub fn from_json<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(io::Error::from)
}
