//! The process tree: what is to be made ([`plan`]), and how it is made ([`build`]).
pub mod build;
pub mod plan;
