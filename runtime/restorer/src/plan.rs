//! What `slackwater restart` hands to the restorer: a list of system calls in order, and the threads to make.
//!
//! Rules: `repr(C)`, plain integers, no pointers but those into the restorer's own blob (which stay valid when all else is
//! unmapped). All decisions were taken when the plan was made; the restorer only executes.

/// One step of rebuilding the address space. Fields that a step does not use are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Op {
    /// One of [`op`].
    pub code: u64,
    /// Address in the process (destination).
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Protection (`MAP`, `PROTECT`), advice (`ADVISE`), source address (`MOVE`, `COPY`).
    pub arg: u64,
    /// mmap flags, shmat flags, mlock2 flags.
    pub flags: u64,
    /// Descriptor (`MAP`, `READ`, `CLOSE`; `u64::MAX`: none), number of a segment (`SHMAT`).
    pub fd: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// Codes of [`Op`].
pub mod op {
    /// munmap(addr, len).
    pub const UNMAP: u64 = 1;
    /// mmap(addr, len, arg, flags, fd, offset); must land at addr. Private memory for which there are no huge pages
    /// (MAP_HUGETLB) gets small ones.
    pub const MAP: u64 = 2;
    /// pread(fd, addr, len, offset), all of it.
    pub const READ: u64 = 3;
    /// mprotect(addr, len, arg).
    pub const PROTECT: u64 = 4;
    /// madvise(addr, len, arg). A refusal is ignored: advice is advice.
    pub const ADVISE: u64 = 5;
    /// mlock2(addr, len, flags). A refusal (the limit is lower here) is ignored.
    pub const LOCK: u64 = 6;
    /// mremap(arg, len, len, MAYMOVE|FIXED, addr).
    pub const MOVE: u64 = 7;
    /// close(fd).
    pub const CLOSE: u64 = 8;
    /// Copy len bytes from arg (in the blob) to addr.
    pub const COPY: u64 = 9;
    /// Fill with zeros.
    pub const ZERO: u64 = 10;
    /// madvise(addr, len, MADV_POPULATE_WRITE) ahead of a READ; a refusal is ignored.
    pub const POPULATE: u64 = 11;
    /// shmat(fd, addr, flags); must land at addr.
    pub const SHMAT: u64 = 12;
    /// mseal(addr, len). A refusal (the kernel is older) is ignored.
    pub const SEAL: u64 = 13;
}

/// One thread to make.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadPlan {
    /// Stack pointer to load.
    pub sp: u64,
    /// Where to jump; 0: this thread (the leader) had ended, and ends again.
    pub resume: u64,
    /// FS base.
    pub fs: u64,
    /// GS base.
    pub gs: u64,
    /// Thread id to take.
    pub tid: u64,
}

/// `struct prctl_mm_map`, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelMmMap {
    /// See prctl(2), PR_SET_MM_MAP.
    pub words: [u64; 11],
    /// Address of the new auxv.
    pub auxv: u64,
    /// Its size in bytes.
    pub auxv_size: u32,
    /// Descriptor of the executable; `u32::MAX`: leave /proc/self/exe alone.
    pub exe_fd: u32,
}

/// The kernel's `struct sigaction` on x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelSigAction {
    /// handler, flags, restorer, mask.
    pub words: [u64; 4],
}

/// Longest coordinator address (text) in [`RestartInfo`].
pub const ADDRESS_MAX: usize = 64;
/// Longest checkpoint folder path in [`RestartInfo`].
pub const FOLDER_MAX: usize = 1024;

/// What the restorer leaves for the agent, at [`Plan::restart_info_at`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RestartInfo {
    /// How often this process has been restarted.
    pub restarts: u64,
    /// The restorer's blob: [start, end), to be unmapped when all threads have arrived.
    pub blob: [u64; 2],
    /// Connected, authenticated and joined.
    pub coordinator_fd: i64,
    /// Number of this process in the computation.
    pub member: u64,
    /// Generation it was restored from.
    pub generation: u64,
    /// Coordinator's address, text, zero padded.
    pub address: [u8; ADDRESS_MAX],
    /// Checkpoint folder, zero padded.
    pub folder: [u8; FOLDER_MAX],
    /// The computation's secret.
    pub secret: [u8; 32],
}

impl RestartInfo {
    /// All zeros.
    pub const ZERO: Self = Self {
        restarts: 0,
        blob: [0; 2],
        coordinator_fd: 0,
        member: 0,
        generation: 0,
        address: [0; ADDRESS_MAX],
        folder: [0; FOLDER_MAX],
        secret: [0; 32],
    };
}

/// The plan's head; it lies in the blob, and so does all that it points to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// First op.
    pub ops: *const Op,
    /// Number of ops.
    pub ops_len: u64,
    /// Threads; the leader last.
    pub threads: *const ThreadPlan,
    /// Number of threads.
    pub threads_len: u64,
    /// For PR_SET_MM_MAP.
    pub mm: KernelMmMap,
    /// Actions of signals 1 to 64.
    pub sigactions: [KernelSigAction; 64],
    /// Where the agent expects its `RestartInfo`.
    pub restart_info_at: u64,
    /// What to put there; `restarts` is counted on from what lies there.
    pub restart_info: RestartInfo,
}
