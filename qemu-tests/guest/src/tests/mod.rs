// SPDX-License-Identifier: GPL-2.0
//! The tests, one file for each subject.

use crate::harness::Test;

mod acks;
mod attribution;
mod audit;
mod batches;
mod cgroup_filter;
mod cgroup_paths;
mod clients;
mod comm;
mod compat;
mod confined;
mod connector;
mod containers;
mod coredump;
mod counting;
mod credentials;
mod cycles;
mod examples;
mod exec;
mod exec_threads;
mod exit;
mod exit_threads;
mod faults;
mod filters;
mod fork;
mod fork_complete;
mod fuzz;
mod identity;
mod ids;
mod io_uring;
mod kunit;
mod leaks;
mod listen;
mod listeners;
mod loading;
mod module;
mod namespaces;
mod namespaces_borders;
mod namespaces_lifetimes;
mod namespaces_listen;
mod numbers;
mod order;
mod others;
mod parameters;
mod process_table;
mod processes;
mod ptrace;
mod request_flags;
mod runtimes;
mod sandboxes;
mod scale;
mod session_end;
mod session_end_namespaces;
mod session_end_threads;
mod sid;
mod silence;
mod sshd;
mod state;
mod state_limits;
mod state_scope;
mod storm;
mod supervisor;
mod wire_format;

/// All tests, in the order in which they run.
pub fn all() -> Vec<Test> {
    [
        kunit::TESTS,
        fork::TESTS,
        fork_complete::TESTS,
        exec::TESTS,
        exec_threads::TESTS,
        ids::TESTS,
        io_uring::TESTS,
        sid::TESTS,
        ptrace::TESTS,
        comm::TESTS,
        coredump::TESTS,
        exit::TESTS,
        exit_threads::TESTS,
        processes::TESTS,
        order::TESTS,
        attribution::TESTS,
        session_end::TESTS,
        session_end_threads::TESTS,
        wire_format::TESTS,
        filters::TESTS,
        listen::TESTS,
        listeners::TESTS,
        counting::TESTS,
        acks::TESTS,
        request_flags::TESTS,
        clients::TESTS,
        others::TESTS,
        cgroup_filter::TESTS,
        cgroup_paths::TESTS,
        numbers::TESTS,
        batches::TESTS,
        identity::TESTS,
        state::TESTS,
        state_scope::TESTS,
        state_limits::TESTS,
        process_table::TESTS,
        module::TESTS,
        parameters::TESTS,
        loading::TESTS,
        connector::TESTS,
        faults::TESTS,
        silence::TESTS,
        namespaces::TESTS,
        namespaces_borders::TESTS,
        namespaces_listen::TESTS,
        sandboxes::TESTS,
        credentials::TESTS,
        namespaces_lifetimes::TESTS,
        session_end_namespaces::TESTS,
        sshd::TESTS,
        supervisor::TESTS,
        scale::TESTS,
        containers::TESTS,
        runtimes::TESTS,
        examples::TESTS,
        compat::TESTS,
        confined::TESTS,
        storm::TESTS,
        cycles::TESTS,
        fuzz::TESTS,
        // Once audit was enabled, even bind(2) allocates memory (audit_sockaddr()), which the tests of
        // faults would notice.
        audit::TESTS,
        leaks::TESTS,
    ]
    .concat()
}

#[cfg(test)]
mod unit {
    use std::collections::BTreeSet;

    use crate::harness::{Line, Test, TestResult, expect_eq};
    use crate::listener::Listener;
    use crate::support::scenario::{END, comm, in_child, mark};
    use crate::test;
    use crate::wire::{Event, mask};

    #[test]
    fn each_test_declares_a_line_and_none_twice() {
        for test in super::all() {
            let covers = test.description().covers;
            assert!(!covers.is_empty(), "{} declares no line", test.full_name());
            let distinct: BTreeSet<_> = covers.iter().collect();
            let name = test.full_name();
            assert_eq!(distinct.len(), covers.len(), "{name} declares a line twice");
        }
    }

    #[test]
    fn each_line_of_the_contract_is_shown() {
        let tests: BTreeSet<_> = super::all()
            .iter()
            .flat_map(|test| test.description().covers)
            .collect();
        for line in Line::ALL {
            let is_shown = tests.contains(line) || !line.shown_by().is_empty();
            assert!(is_shown, "no test declares {line}");
        }
    }

    /// The test that the README shows as an example.
    fn a_new_name_is_reported() -> TestResult {
        let mut listener = Listener::listen(mask::COMM)?;
        let scene = in_child(&mut listener, || Ok(mark("new name").map(|()| 0)?))?;
        let task = scene.child;
        let expected = ["new name", END].map(|name| Event::Comm {
            task,
            comm: comm(name),
        });
        expect_eq("events", scene.events(mask::COMM), expected.to_vec())
    }

    #[test]
    fn the_readme_shows_a_test_that_compiles() {
        let test = test!(a_new_name_is_reported).covers(&[Line::C13]);
        assert_eq!(test.description().covers, [Line::C13]);
        let lines = |text: &'static str| {
            let lines = text.lines().map(str::trim_start);
            let lines = lines.skip_while(|line| !line.starts_with("fn a_new_name_is_reported"));
            lines.take_while(|line| *line != "}").collect::<Vec<_>>()
        };
        let shown = lines(include_str!("../../../README.md"));
        assert_eq!(shown, lines(include_str!("mod.rs")));
        assert_eq!(shown.len(), 9);
    }

    /// Documents that name tests and are written by hand.
    const DOCUMENTS: [&str; 2] = [
        include_str!("../../../../Documentation/threat-model.md"),
        include_str!("../../../README.md"),
    ];

    #[test]
    fn documents_name_tests_that_exist() {
        let mut known: BTreeSet<_> = super::all().iter().map(Test::full_name).collect();
        // A function stands for all its variants.
        let functions = known.iter().filter_map(|name| name.split_once('['));
        let functions: Vec<_> = functions.map(|(function, _)| function.to_owned()).collect();
        known.extend(functions);
        for document in DOCUMENTS {
            let words =
                document.split(|c: char| !(c.is_ascii_alphanumeric() || "_:[]".contains(c)));
            let tests: Vec<_> = words
                .filter(|word| word.contains("::") && !word.contains(char::is_uppercase))
                .filter(|word| !word.starts_with("zerocopy::"))
                .collect();
            assert!(!tests.is_empty());
            for test in tests {
                assert!(known.contains(test), "no test {test}");
            }
        }
    }
}
