// SPDX-License-Identifier: GPL-2.0

//! A hash table from addresses to positions, as a slice: built once, then only read.
//!
//! This file knows nothing of the kernel, and is tested on the host.

/// An entry of the table: a key, which is not 0, and the position that it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    key: usize,
    position: usize,
}

/// How many slots a table for `keys` keys has: at least four times as many, so that most searches
/// end where they start.
pub(crate) fn slots(keys: usize) -> usize {
    match keys {
        0 => 0,
        _ => (4 * keys).next_power_of_two(),
    }
}

/// Where the search for `key` starts. Addresses differ most in their middle bits, so multiply (by
/// 2^64 divided by the golden ratio), and take the uppermost bits of the product, which depend on
/// all of the key's. There are at least four slots.
#[inline]
fn start(key: usize, slots: usize) -> usize {
    let product = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);

    (product >> (u64::BITS - slots.trailing_zeros())) as usize
}

/// The slot that `key` is in, or the empty one that it would be in.
#[inline]
fn probe(table: &[Slot], key: usize) -> Option<usize> {
    if table.is_empty() {
        return None;
    }

    let mask = table.len() - 1;
    let mut at = start(key, table.len());
    for _ in 0..table.len() {
        let found = table.get(at)?.key;
        if found == key || found == 0 {
            return Some(at);
        }
        at = (at + 1) & mask;
    }
    None
}

/// The position that `key` stands for.
#[inline]
pub(crate) fn find(table: &[Slot], key: usize) -> Option<usize> {
    let slot = table.get(probe(table, key)?)?;

    (slot.key == key).then_some(slot.position)
}

/// Lets `key` stand for `position`. The table is one with [`slots`] for all keys.
pub(crate) fn insert(table: &mut [Slot], key: usize, position: usize) {
    if let Some(at) = probe(table, key) {
        table[at] = Slot { key, position };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that look like addresses of objects of one slab cache.
    fn address(number: usize) -> usize {
        0xffff_8880_0123_4000 + number * 0x340
    }

    fn check_table(keys: usize) {
        let mut table = vec![Slot::default(); slots(keys)];

        for number in 0..keys {
            assert_eq!(find(&table, address(number)), None);
            insert(&mut table, address(number), number);
        }
        for number in 0..keys {
            assert_eq!(find(&table, address(number)), Some(number), "of {keys}");
        }
        for number in keys..2 * keys + 10 {
            assert_eq!(find(&table, address(number)), None, "of {keys}");
        }
    }

    #[test]
    fn finds_what_was_inserted_and_nothing_else() {
        for keys in [0, 1, 2, 3, 7, 8, 9, 256, 1000] {
            check_table(keys);
        }
    }

    #[test]
    fn searches_are_short() {
        let keys = 256;
        let mut table = vec![Slot::default(); slots(keys)];
        for number in 0..keys {
            insert(&mut table, address(number), number);
        }

        let longest = (0..keys)
            .map(|number| {
                let at = probe(&table, address(number)).unwrap();
                at.wrapping_sub(start(address(number), table.len())) & (table.len() - 1)
            })
            .max();
        assert!(longest < Some(4), "{longest:?}");
    }

    #[test]
    fn inserting_again_replaces() {
        let mut table = vec![Slot::default(); slots(1)];
        insert(&mut table, address(1), 5);
        insert(&mut table, address(1), 6);

        assert_eq!(find(&table, address(1)), Some(6));
    }
}
