// SPDX-License-Identifier: GPL-2.0

//! The counters of a listener for its events: an account for each CPU.

use kernel::{
    alloc::AllocError,
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// The counters of a listener for the events of one CPU.
///
/// Only that CPU writes them, in a [`Section`](kernel::proc_events::Section), so that relaxed loads
/// and stores are enough. They are atomic because the listing may read them at any time.
pub(crate) struct Account {
    /// The number of the next event, before it is truncated to 32 bits.
    next: Atomic<u64>,
    /// How many events were lost, because there was no room or no memory.
    lost: Atomic<u64>,
}

impl Account {
    fn new() -> Self {
        Self {
            next: Atomic::new(0),
            lost: Atomic::new(0),
        }
    }

    /// Takes the number of an event. The event counts as queued, unless [`Self::give_back`] or
    /// [`Self::lose`] follows in the same section.
    #[inline]
    pub(crate) fn take(&self) -> u32 {
        let number = self.next();

        self.next.store(number.wrapping_add(1), Relaxed);
        number as u32
    }

    /// Gives back the number that was just taken: the event was not sent.
    pub(crate) fn give_back(&self) {
        self.next.store(self.next().wrapping_sub(1), Relaxed);
    }

    /// Counts the event whose number was just taken as lost.
    pub(crate) fn lose(&self) {
        self.lost.store(self.lost().wrapping_add(1), Relaxed);
    }

    fn next(&self) -> u64 {
        self.next.load(Relaxed)
    }

    fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// How many accounts a page has room for.
const PER_PAGE: usize = PAGE_SIZE / size_of::<Account>();

/// The accounts of all CPUs.
///
/// They are not from the per-CPU allocator, which takes three times as long for them as all other
/// allocations of a LISTEN together. Accounts of different CPUs may share a cache line. That costs
/// little: an event that changes an account also changes the socket, which all CPUs share.
pub(crate) struct Accounts {
    /// Those of the first CPUs, by their ids. Nearly all machines have no others.
    page: KVec<Account>,
    /// Those of the other CPUs, so that no allocation is larger than a page.
    others: KVec<KVec<Account>>,
    /// The number of the first event on one CPU. The other CPUs start at 0.
    first: Atomic<u32>,
}

impl Accounts {
    /// Allocates the accounts.
    ///
    /// # Context
    ///
    /// Process context. May sleep.
    pub(crate) fn new() -> Result<Self, AllocError> {
        let count = nr_cpu_ids() as usize;
        let mut others = KVec::new();

        for cpu in (PER_PAGE..count).step_by(PER_PAGE) {
            others.push(Self::page(count - cpu)?, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            page: Self::page(count)?,
            others,
            first: Atomic::new(0),
        })
    }

    /// Allocates a page for that many accounts, or as many as it has room for.
    fn page(count: usize) -> Result<KVec<Account>, AllocError> {
        let count = count.min(PER_PAGE);
        let mut page = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..count {
            page.push(Account::new(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(page)
    }

    /// Returns the account of a CPU. There is one for each.
    #[inline]
    pub(crate) fn of(&self, cpu: CpuId) -> Option<&Account> {
        let index = cpu.as_u32() as usize;

        self.page.get(index).or_else(|| self.other(index))
    }

    /// Returns the account of a CPU that is not in the first page.
    #[cold]
    fn other(&self, index: usize) -> Option<&Account> {
        self.others
            .get((index / PER_PAGE).checked_sub(1)?)?
            .get(index % PER_PAGE)
    }

    /// Makes the numbers of a CPU start at `seq`. This is done at most once, before any event.
    pub(crate) fn start_at(&self, seq: u32, cpu: CpuId) {
        if let Some(account) = self.of(cpu) {
            account.next.store(seq.into(), Relaxed);
            self.first.store(seq, Relaxed);
        }
    }

    /// Returns how many events were lost, because there was no room or no memory.
    pub(crate) fn lost(&self) -> u64 {
        self.total(Account::lost)
    }

    /// Returns how many events were queued: the events that took a number and were not lost. An
    /// event that is being sent may be counted already. The counters may be from different moments,
    /// but the result is never below 0.
    pub(crate) fn delivered(&self) -> u64 {
        let numbered = self.total(Account::next) - u64::from(self.first.load(Relaxed));

        numbered.saturating_sub(self.lost())
    }

    /// Returns the sum over all CPUs.
    fn total(&self, count: fn(&Account) -> u64) -> u64 {
        let others = self.others.iter().flatten().map(count).sum::<u64>();

        others + self.page.iter().map(count).sum::<u64>()
    }
}
