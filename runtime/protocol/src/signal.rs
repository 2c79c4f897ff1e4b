//! The checkpoint signal, as the agent's handler and the coordinator know it.
//!
//! It is 33 (SIGSETXID), which glibc reserves for itself; what we queue is told from what glibc sends by `si_code`
//! (`SI_QUEUE`) and the value. It is only ever sent to threads, by rt_tgsigqueueinfo(2).

/// Its number.
pub const SIGNAL: i32 = 33;
/// The other one that glibc reserves (SIGCANCEL), by `launch --signal 32`. Its handler for one of them that is not ours
/// ignores what we send.
pub const OTHER: i32 = 32;
/// Value: park, if the checkpoint thread says so at the moment of delivery.
pub const PARK: usize = 0x51ac_cafe;
/// Value: wait a while for the checkpoint thread to say so. The coordinator sends it to the threads of a stopped process
/// before it continues it, so that they park without having run: one that reads from the terminal in the background
/// would be stopped again at once, and its checkpoint thread with it.
pub const HOLD: usize = 0x51ac_401d;
