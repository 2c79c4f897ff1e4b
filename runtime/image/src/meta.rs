//! What a process is made of, as the agent finds it and as a restart needs it.
//!
//! These types are serialized with postcard into sections of the image. Rules: plain data, no addresses of ours except
//! where named; a field is added at the end of its struct together with a step of the format's minor version.
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Section name of [`Process`].
pub const SECTION_PROCESS: &str = "process";
/// Section name of `Vec<Thread>`; the thread group leader comes first, the checkpoint thread last.
pub const SECTION_THREADS: &str = "threads";
/// Section name of `Vec<Region>`, ascending by address, not overlapping.
pub const SECTION_REGIONS: &str = "regions";
/// Section name of the descriptor table and the kernel objects behind it (crate `slackwater-objects`).
pub const SECTION_OBJECTS: &str = "objects";
/// Sections of plugins are named by this prefix and the plugin's name.
pub const SECTION_PLUGIN_PREFIX: &str = "plugin:";

/// `struct prctl_mm_map` of `<linux/prctl.h>`; addresses in the checkpointed process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmMap {
    /// Start of the text.
    pub start_code: u64,
    /// End of the text.
    pub end_code: u64,
    /// Start of the data.
    pub start_data: u64,
    /// End of the data.
    pub end_data: u64,
    /// Start of the heap that brk(2) moves.
    pub start_brk: u64,
    /// Its present end.
    pub brk: u64,
    /// Bottom of the main stack.
    pub start_stack: u64,
    /// argv strings.
    pub arg_start: u64,
    /// End of argv strings.
    pub arg_end: u64,
    /// Environment strings.
    pub env_start: u64,
    /// End of the environment strings.
    pub env_end: u64,
}

/// Shared mappings of files up to this length, in bytes, are in the image as a whole, pages that are not in memory
/// included: they are what programs keep in session directories, which a restart may have to make again.
pub const WHOLE_SHARED: u64 = 4 << 20;

/// A half-open range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

/// The kernel's action for one signal, as rt_sigaction(2) speaks it on x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigAction {
    /// Handler, or 0 (SIG_DFL), or 1 (SIG_IGN).
    pub handler: u64,
    /// SA_* flags.
    pub flags: u64,
    /// The sigreturn trampoline.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// A child that has ended and has not been waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    /// Its pid.
    pub pid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// Status as wait4(2) gives it.
    pub status: i32,
}

/// A POSIX per-process timer (timer_create(2)), from /proc/self/timers and timer_gettime(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The kernel's timer id.
    pub id: i32,
    /// Clock id.
    pub clock: i32,
    /// SIGEV_*.
    pub notify: i32,
    /// Signal number.
    pub signo: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread for SIGEV_THREAD_ID.
    pub tid: i32,
    /// Nanoseconds left; 0: not armed.
    pub remaining_ns: u64,
    /// Interval in nanoseconds.
    pub interval_ns: u64,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id (thread group id) in the computation's pid namespace.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Controlling terminal as in /proc/PID/stat field 7; 0: none.
    pub tty: i32,
    /// Foreground process group of the terminal, field 8.
    pub tpgid: i32,
    /// The signal that its parent gets when it ends, field 38: what wait(2) finds goes by it (`__WCLONE`).
    pub exit_signal: i32,
    /// /proc/self/exe.
    pub exe: String,
    /// argv, for people.
    pub cmdline: Vec<String>,
    /// Current working directory.
    pub cwd: String,
    /// File mode creation mask.
    pub umask: u32,
    /// personality(2).
    pub personality: u32,
    /// getrlimit(2): soft and hard limit, by resource number.
    pub rlimits: Vec<(u64, u64)>,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_PDEATHSIG.
    pub pdeathsig: i32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// PR_GET_THP_DISABLE.
    pub thp_disable: bool,
    /// Real, effective, saved user id.
    pub uids: [u32; 3],
    /// Real, effective, saved group id.
    pub gids: [u32; 3],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities (capabilities(7)) of the first thread: inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/self/coredump_filter.
    pub coredump_filter: u32,
    /// ioprio_get(2) of the first thread.
    pub io_priority: u32,
    /// Memory layout facts for PR_SET_MM_MAP.
    pub mm: MmMap,
    /// /proc/self/auxv.
    pub auxv: Vec<u8>,
    /// The vdso's text.
    pub vdso: Range,
    /// All of the vdso's data pages (`[vvar]`, `[vvar_vclock]`) that lie before it.
    pub vvar: Range,
    /// The vdso's content: needed to forward its entry points when a restart finds another.
    pub vdso_content: Vec<u8>,
    /// Actions of signals 1 to 64 (index 0 is signal 1).
    pub sigactions: Vec<SigAction>,
    /// siginfo_t of signals pending for the process.
    pub pending: Vec<Vec<u8>>,
    /// ITIMER_REAL, VIRTUAL, PROF: remaining and interval in microseconds.
    pub itimers: [(u64, u64); 3],
    /// POSIX timers.
    pub timers: Vec<PosixTimer>,
    /// Children that ended and wait to be waited for.
    pub zombies: Vec<Zombie>,
    /// Address, in the checkpointed process, of the agent's `RestartInfo` (in crate `slackwater-restorer`).
    pub restart_info: u64,
    /// Descriptors that belong to the runtime: not the program's.
    pub protected_fds: Vec<i32>,
    /// CPU features in use: what XGETBV and CPUID report, see the agent's `arch`.
    pub cpu_features: Vec<u64>,
    /// Kernel release, for people.
    pub kernel: String,
    /// Host name, for people.
    pub hostname: String,
}

/// One thread. Its user registers lie in its own memory; `resume` picks them up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id.
    pub tid: i32,
    /// Stack pointer at which `resume` finds the callee-saved registers.
    pub sp: u64,
    /// Where the restorer jumps to.
    pub resume: u64,
    /// FS base.
    pub fs: u64,
    /// GS base.
    pub gs: u64,
    /// set_tid_address(2).
    pub clear_tid: u64,
    /// Robust list head.
    pub robust: u64,
    /// Robust list head's length.
    pub robust_len: u64,
    /// Registered rseq area; 0: none.
    pub rseq: u64,
    /// Its length as registered.
    pub rseq_len: u32,
    /// Its signature.
    pub rseq_sig: u32,
    /// sigaltstack(2): sp, flags, size.
    pub altstack: [u64; 3],
    /// Signal mask that the restorer sets before it jumps (the agent's own: all blocked).
    pub sigmask: u64,
    /// comm.
    pub name: [u8; 16],
    /// sched_getscheduler(2).
    pub policy: i32,
    /// sched_priority.
    pub priority: i32,
    /// Nice value.
    pub nice: i32,
    /// sched_getaffinity(2).
    pub affinity: Vec<u8>,
    /// PR_GET_TIMERSLACK.
    pub timerslack: u64,
    /// siginfo_t of signals pending for this thread.
    pub pending: Vec<Vec<u8>>,
}

/// What lies behind a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory (heap, stacks, plain mmap).
    Anon,
    /// Private mapping of a file; pages that differ from the file are in the image.
    FilePrivate(FileId),
    /// Shared mapping. `object` names the memory object in the computation (index into the generation's table of shared
    /// objects is made of it): device and inode as the kernel shows them in maps.
    Shared(FileId),
}

/// A file as it was seen at the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// Path as in /proc/self/maps, without " (deleted)".
    pub path: String,
    /// The name is gone, or names another file by now.
    pub deleted: bool,
    /// Device (makedev as in stat).
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Offset of the region's first byte in the file.
    pub offset: u64,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Where.
    pub range: Range,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u32,
    /// `flag::*`.
    pub flags: u32,
    /// What lies behind it.
    pub backing: Backing,
}

/// Flags of a [`Region`], from the VmFlags line of /proc/self/smaps.
pub mod flag {
    /// Grows down (MAP_GROWSDOWN; the main stack).
    pub const GROWSDOWN: u32 = 1;
    /// MAP_NORESERVE.
    pub const NORESERVE: u32 = 2;
    /// MADV_DONTFORK.
    pub const DONTFORK: u32 = 4;
    /// MADV_WIPEONFORK.
    pub const WIPEONFORK: u32 = 8;
    /// MADV_DONTDUMP.
    pub const DONTDUMP: u32 = 16;
    /// MADV_HUGEPAGE.
    pub const HUGEPAGE: u32 = 32;
    /// MADV_NOHUGEPAGE.
    pub const NOHUGEPAGE: u32 = 64;
    /// mlock(2).
    pub const LOCKED: u32 = 128;
    /// MADV_MERGEABLE.
    pub const MERGEABLE: u32 = 256;
    /// MADV_SEQUENTIAL.
    pub const SEQUENTIAL: u32 = 512;
    /// MADV_RANDOM.
    pub const RANDOM: u32 = 1024;
    /// MAP_HUGETLB.
    pub const HUGETLB: u32 = 2048;
    /// Not to be saved: a cutout made by a plugin (comes back as zero pages).
    pub const CUTOUT: u32 = 4096;
    /// A shared mapping through which the program may write (VM_MAYWRITE): its content is part of the image. Without it
    /// the mapping only shows a file.
    pub const MAYWRITE: u32 = 8192;
    /// Attached by shmat(2): the inode is the segment's number.
    pub const SYSV: u32 = 16384;
    /// With [`LOCKED`]: mlock2(2)'s MLOCK_ONFAULT.
    pub const ONFAULT: u32 = 32768;
    /// mseal(2), Linux 6.10.
    pub const SEALED: u32 = 65536;
}
