//! `libslackwater.so`: the part of slackwater that lives in each process of a computation.
//!
//! It is preloaded into programs that are not ours, so its first rule is to leave no trace: no call is wrapped that need not
//! be, no signal, descriptor number or allocation of the program's changes, and whatever goes wrong here, the program runs on.
//!
//! Rules for all modules: raw system calls ([`sys`]) instead of libc, memory from [`arena`], no lock that a stopped thread
//! may hold, no stdio, no loader, no panic. Without std, so that the compiler checks most of this, and no other library
//! (libgcc_s) is pulled into the process; the end-to-end case `imports` compares the symbols that the library needs with `imports.list`.
//! Cargo unifies features, and std in a shared dependency would clash with our panic handler: build this crate with
//! `-p slackwater-agent`, not with the whole workspace.
#![no_std]
#![allow(unsafe_code)] // system calls and signal frames are what this crate is made of; each block has its SAFETY
extern crate alloc;

#[macro_use]
mod sys;
mod apart;
mod arch;
mod arena;
mod asleep;
mod checkpoint;
mod children;
mod conn;
mod descriptors;
mod follow;
mod freeze;
mod guard;
mod huge;
mod init;
mod libc_facts;
mod maps;
mod membership;
mod pages;
mod panic;
mod pending;
mod plugins;
mod process;
mod relay;
mod sandbox;
mod save;
mod shared;
mod spin;
mod stop;
mod text;
mod timers;
