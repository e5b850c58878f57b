// SPDX-License-Identifier: GPL-2.0
//! The count (C27): how many sockets listen at this moment, however they began to listen or stopped.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::sync::Barrier;
use std::thread;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Uid, dup2_stdin, dup2_stdout, execv, pipe, read, setresuid};

use crate::child::{self, Gate};
use crate::harness::{Declaration, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::support::descriptors::{receive_descriptor, send_descriptors, unix_pair};
use crate::support::ends::{End, ignore, leave};
use crate::support::process::{status, succeed};
use crate::support::scenario::{
    ListeningChild, expect_count, expect_own_events, mark, request_from_two_threads,
};
use crate::test;
use crate::wire::{CN_PROC, IGNORE, LISTEN, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(LEAK)
    .covers(&[Line::C27])
    .of([
        test!(a_listener_ends_by[ignore](ignore))
            .not_on_stock(NO_COUNT)
            .covers(&[Line::C30]),
        test!(a_listener_ends_by[ignore_with_a_mask](ignore_with_a_mask)).not_on_stock(NO_COUNT),
        test!(closing_the_socket_ends_a_listener),
        test!(killing_the_process_ends_a_listener),
        test!(a_listener_ends_by[leaving_the_group](leave)),
        test!(binding_without_the_group_ends_a_listener),
        test!(a_bind_that_fails_ends_no_listener[in_the_group](CN_PROC))
            .stock_passes()
            .covers(&[Line::C19]),
        test!(a_bind_that_fails_ends_no_listener[outside_of_the_group](0))
            .not_on_stock("only members of the group get events"),
        test!(joining_twice_is_left_once).not_on_stock(NO_COUNT),
        test!(a_socket_passed_on_listens_until_its_last_holder_closes_it),
        test!(a_socket_in_flight_listens_until_its_message_is_dropped),
        test!(a_socket_shared_by_fork_listens_until_both_close_it),
        test!(executing_a_program_ends_a_listener_that_closes_on_exec),
        test!(listening_and_closing_at_once_leaves_nothing),
        test!(two_threads_at_one_socket_make_one_listener).not_on_stock(NO_COUNT),
        test!(listening_after_a_refused_request_counts_once).covers(&[Line::C20]),
        test!(a_refused_request_counts_nothing)
            .not_on_stock(NO_COUNT)
            .covers(&[Line::C20]),
        test!(listening_twice_counts_once)
            .not_on_stock(NO_COUNT)
            .covers(&[Line::C18]),
        test!(ignore_without_listening_ends_no_listener).not_on_stock(NO_COUNT),
        test!(ending_twice_ends_no_other_listener).not_on_stock(NO_COUNT),
        test!(joining_the_group_again_is_no_request).covers(&[Line::C24]),
        test!(leaving_another_group_ends_no_listener).not_on_stock(NO_COUNT),
        test!(each_socket_of_a_process_counts).not_on_stock(NO_COUNT),
    ]);

const NO_COUNT: &str = "its count is not reported, and listeners that stay counted would hide it";
const LEAK: &str = "a listener that ends without IGNORE stays counted";

fn a_listener_ends_by(end: End) -> TestResult {
    let mut listener = Listener::listen(mask::SID | mask::EXEC)?;
    expect_count(1)?;
    end(&mut listener)?;
    expect_count(0)
}

fn ignore_with_a_mask(listener: &mut Listener) -> Result<(), ListenerError> {
    listener.request(&[IGNORE, mask::SID])
}

fn closing_the_socket_ends_a_listener() -> TestResult {
    let listener = Listener::listen_all()?;
    expect_count(1)?;
    drop(listener);
    expect_count(0)
}

fn killing_the_process_ends_a_listener() -> TestResult {
    let child = ListeningChild::start()?;
    expect_count(1)?;
    child.kill()?;
    expect_count(0)
}

fn binding_without_the_group_ends_a_listener() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let own = listener.port_id()?;
    // Binding to the same groups again ends no listener.
    listener.socket().bind(&SocketAddr::new(own, CN_PROC))?;
    expect_count(1)?;
    expect_own_events(&mut listener)?;
    listener.socket().bind(&SocketAddr::new(own, 0))?;
    expect_count(0)
}

/// The connector refuses the second group to a user, after it has accepted the first one.
fn a_bind_that_fails_ends_no_listener(group: u32) -> TestResult {
    const USER: Uid = Uid::from_raw(1000);
    succeed(child::fork(|| {
        status(|| {
            let mut listener = Listener::open_unbound()?;
            listener.enlarge_buffer()?;
            listener.socket().bind(&SocketAddr::new(0, group))?;
            setresuid(USER, USER, USER)?;
            listener.request(&[LISTEN])?;
            let groups = SocketAddr::new(listener.port_id()?, CN_PROC | CN_PROC << 1);
            let refused = listener.socket().bind(&groups);
            expect_eq(
                "error of bind",
                refused.err().and_then(|error| error.raw_os_error()),
                Some(Errno::EPERM as i32),
            )?;
            expect_own_events(&mut listener)?;
            listener.ignore()?;
            Ok(())
        })
    })?)
}

fn a_socket_passed_on_listens_until_its_last_holder_closes_it() -> TestResult {
    let (ours, theirs) = unix_pair()?;
    let (taken, close) = (Gate::new()?, Gate::new()?);
    // The holder is forked before there is a listener: it can get the socket only through the message.
    let holder = child::fork(|| {
        let held = receive_descriptor(&theirs);
        let kept = held.is_ok() && taken.open(0).is_ok() && close.pass().is_ok();
        drop(held);
        let closed = kept && taken.open(0).is_ok() && close.pass().is_ok();
        i32::from(!closed)
    })?;
    let listener = Listener::listen_all()?;
    send_descriptors(&ours, &[listener.as_fd().as_raw_fd()])?;
    taken.pass()?;
    drop(listener);
    expect_count(1)?;
    close.open(0)?;
    taken.pass()?;
    expect_count(0)?;
    close.open(0)?;
    succeed(holder)
}

fn a_socket_in_flight_listens_until_its_message_is_dropped() -> TestResult {
    let (ours, theirs) = unix_pair()?;
    let listener = Listener::listen_all()?;
    send_descriptors(&ours, &[listener.as_fd().as_raw_fd()])?;
    drop(listener);
    expect_count(1)?;
    drop(theirs);
    expect_count(0)
}

fn a_socket_shared_by_fork_listens_until_both_close_it() -> TestResult {
    let mut listener = Listener::listen_all()?;
    child::fork(|| 0)?.wait()?;
    expect_count(1)?;
    expect_own_events(&mut listener)?;
    let (close, closed) = (Gate::new()?, Gate::new()?);
    let heir = child::fork(|| i32::from(close.pass().is_err() || closed.open(0).is_err()))?;
    drop(listener);
    expect_count(1)?;
    close.open(0)?;
    closed.pass()?;
    heir.wait()?;
    expect_count(0)
}

fn executing_a_program_ends_a_listener_that_closes_on_exec() -> TestResult {
    let (input, go_on) = pipe()?;
    let (answer, output) = pipe()?;
    let listening = Gate::new()?;
    let execute = Gate::new()?;
    let child = child::fork(|| {
        let listener = Listener::listen_all();
        let ready = listener.is_ok()
            && dup2_stdin(&input).is_ok()
            && dup2_stdout(&output).is_ok()
            && listening.open(0).is_ok()
            && execute.pass().is_ok();
        if ready {
            let _ = execv(c"/bin/sh", &[c"sh", c"-c", c"echo; read line"]);
        }
        1
    })?;
    listening.pass()?;
    expect_count(1)?;
    execute.open(0)?;
    // Once the program writes its line, exec has closed the descriptors of the former program.
    drop(output);
    expect_eq("bytes from the program", read(&answer, &mut [0; 8])?, 1)?;
    expect_count(0)?;
    drop(go_on);
    kill(child.pid(), Signal::SIGKILL)?;
    child.wait()?;
    Ok(())
}

/// Closes a socket in one thread while another one sends LISTEN on it.
fn race_listen_and_close() -> TestResult {
    let mut opened = Listener::open()?;
    let descriptor = nix::unistd::dup(opened.socket())?.into_raw_fd();
    drop(opened);
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let closing = scope.spawn(|| {
            start.wait();
            // SAFETY: This function owns the descriptor. Nothing uses its number after both threads.
            unsafe { libc::close(descriptor) }
        });
        // SAFETY: Only the other thread closes it, and nothing else opens a descriptor.
        let socket = ManuallyDrop::new(Listener::from(unsafe { Socket::from_raw_fd(descriptor) }));
        start.wait();
        // Either order is right: it listens and is closed, or it is closed already.
        let listened = socket.request(&[LISTEN]);
        let closed = closing.join().expect("closing does not panic");
        expect_eq("close", closed, 0)?;
        let is_right = match &listened {
            Ok(()) => true,
            Err(error) => error.errno() == Some(Errno::EBADF),
        };
        expect(is_right, format!("EBADF or success, got {listened:?}"))
    })
}

fn listening_and_closing_at_once_leaves_nothing() -> TestResult {
    const ROUNDS: usize = 100;
    // The first listener certainly listens before it is closed.
    drop(Listener::listen_all()?);
    for _ in 0..ROUNDS {
        race_listen_and_close()?;
    }
    expect_count(0)
}

fn two_threads_at_one_socket_make_one_listener() -> TestResult {
    const ROUNDS: usize = 50;
    for _ in 0..ROUNDS {
        let listener = Listener::open()?;
        request_from_two_threads(&listener, &[LISTEN, mask::SID])?;
        expect_count(1)?;
        drop(listener);
        expect_count(0)?;
    }
    Ok(())
}

const UNKNOWN: u32 = 4;

fn listening_after_a_refused_request_counts_once() -> TestResult {
    let mut listener = Listener::open()?;
    listener.request(&[UNKNOWN])?;
    listener.request(&[LISTEN])?;
    expect_count(1)?;
    expect_own_events(&mut listener)?;
    drop(listener);
    expect_count(0)
}

fn a_refused_request_counts_nothing() -> TestResult {
    let listener = Listener::open()?;
    for words in [&[UNKNOWN][..], &[0], &[LISTEN, 0, 0], &[]] {
        listener.request(words)?;
        expect_count(0)?;
    }
    listener.request(&[LISTEN])?;
    for words in [&[UNKNOWN][..], &[0], &[IGNORE, 0, 0], &[]] {
        listener.request(words)?;
        expect_count(1)?;
    }
    Ok(())
}

fn listening_twice_counts_once() -> TestResult {
    let listener = Listener::listen_all()?;
    listener.request(&[LISTEN])?;
    listener.request(&[LISTEN, mask::SID])?;
    expect_count(1)?;
    listener.ignore()?;
    expect_count(0)
}

fn ignore_without_listening_ends_no_listener() -> TestResult {
    let mut stays = Listener::listen_all()?;
    Listener::open()?.ignore()?;
    expect_count(1)?;
    expect_own_events(&mut stays)
}

fn ending_twice_ends_no_other_listener() -> TestResult {
    let mut stays = Listener::listen_all()?;
    let mut goes = Listener::listen_all()?;
    expect_count(2)?;
    goes.ignore()?;
    goes.ignore()?;
    expect_count(1)?;
    goes.socket().drop_membership(CN_PROC)?;
    expect_count(1)?;
    drop(goes);
    expect_count(1)?;
    let mut goes = Listener::listen_all()?;
    goes.socket().drop_membership(CN_PROC)?;
    drop(goes);
    expect_count(1)?;
    expect_own_events(&mut stays)
}

fn joining_the_group_again_is_no_request() -> TestResult {
    let mut listener = Listener::listen_all()?;
    listener.socket().drop_membership(CN_PROC)?;
    listener.take_queued()?;
    listener.socket().add_membership(CN_PROC)?;
    mark("not received")?;
    expect_eq("messages", listener.take_queued()?.len(), 0)?;
    expect_count(0)?;
    listener.request(&[LISTEN])?;
    expect_count(1)?;
    expect_own_events(&mut listener)
}

/// By both system calls.
fn joining_twice_is_left_once() -> TestResult {
    let mut listener = Listener::listen_all()?;
    listener.socket().add_membership(CN_PROC)?;
    let address = SocketAddr::new(listener.port_id()?, CN_PROC);
    listener.socket().bind(&address)?;
    expect_count(1)?;
    expect_own_events(&mut listener)?;
    listener.socket().drop_membership(CN_PROC)?;
    expect_count(0)
}

fn leaving_another_group_ends_no_listener() -> TestResult {
    let mut listener = Listener::listen_all()?;
    listener.socket().drop_membership(CN_PROC + 1)?;
    expect_count(1)?;
    expect_own_events(&mut listener)
}

fn each_socket_of_a_process_counts() -> TestResult {
    const SOCKETS: usize = 16;
    let mut listeners = Vec::new();
    for number in 1..=SOCKETS {
        listeners.push(Listener::listen_all()?);
        expect_count(number)?;
    }
    for left in (0..SOCKETS).rev() {
        let listener = listeners.swap_remove(left / 2);
        if left % 2 == 0 {
            listener.ignore()?;
        }
        drop(listener);
        expect_count(left)?;
        if let Some(other) = listeners.first_mut() {
            expect_own_events(other)?;
        }
    }
    Ok(())
}
