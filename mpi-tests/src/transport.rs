//! Transports, as data: which MPI, which way the bytes go, and the words that make `mpirun` take that way.
//!
//! Rules: a transport is named in full, so that a test cannot fall back to another one without notice (the programs would
//! pass just as well).

/// An MPI as Debian packages it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpi {
    /// Open MPI 4.1.
    Open,
    /// MPICH 4.0, built with ch4:ucx.
    Mpich,
}

impl Mpi {
    /// The compiler wrapper for sources with this extension.
    #[must_use]
    pub fn compiler(self, extension: &str) -> &'static str {
        match (self, extension) {
            (Self::Open, "f90") => "mpif90.openmpi",
            (Self::Open, _) => "mpicc.openmpi",
            (Self::Mpich, "f90") => "mpif90.mpich",
            (Self::Mpich, _) => "mpicc.mpich",
        }
    }

    /// The launcher.
    #[must_use]
    pub fn launcher(self) -> &'static str {
        match self {
            Self::Open => "mpirun.openmpi",
            Self::Mpich => "mpirun.mpich",
        }
    }
}

/// One way for the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// In the tests' names.
    pub name: &'static str,
    /// Whose.
    pub mpi: Mpi,
    /// Options of `mpirun` that choose it.
    pub options: &'static [&'static str],
    /// `UCX_*` variables of the ranks that choose it.
    pub ucx: &'static [(&'static str, &'static str)],
    /// It needs a verbs device.
    pub verbs: bool,
}

/// Open MPI's own transports.
const OB1: [&str; 4] = ["--mca", "pml", "ob1", "--mca"];
/// UCX under Open MPI, also where it would not choose UCX by itself.
const UCX: &[&str] = &[
    "--mca",
    "pml",
    "ucx",
    "--mca",
    "pml_ucx_tls",
    "any",
    "--mca",
    "pml_ucx_devices",
    "any",
    "--mca",
    "osc",
    "ucx,sm",
];
/// Soft-RoCE: UCX needs the IPv6 GID there, and ud_verbs beside rc_verbs.
pub const VERBS: &[(&str, &str)] =
    &[("UCX_NET_DEVICES", "rxe0:1"), ("UCX_IB_GID_INDEX", "2"), ("UCX_TLS", "rc_verbs,ud_verbs,self")];

/// The same, with large messages by process_vm_readv(2); by RDMA reads; by RDMA writes.
const CMA: &[(&str, &str)] = &[VERBS[0], VERBS[1], ("UCX_TLS", "rc_verbs,ud_verbs,cma,self")];
const GET: &[(&str, &str)] =
    &[VERBS[0], VERBS[1], VERBS[2], ("UCX_RNDV_SCHEME", "get_zcopy"), ("UCX_RNDV_THRESH", "8k")];
const PUT: &[(&str, &str)] =
    &[VERBS[0], VERBS[1], VERBS[2], ("UCX_RNDV_SCHEME", "put_zcopy"), ("UCX_RNDV_THRESH", "8k")];

/// All of them.
pub const TRANSPORTS: &[Transport] = &[
    Transport {
        name: "openmpi-tcp",
        mpi: Mpi::Open,
        options: &[OB1[0], OB1[1], OB1[2], OB1[3], "btl", "tcp,self"],
        ucx: &[],
        verbs: false,
    },
    Transport {
        name: "openmpi-vader",
        mpi: Mpi::Open,
        options: &[OB1[0], OB1[1], OB1[2], OB1[3], "btl", "vader,self"],
        ucx: &[],
        verbs: false,
    },
    // As users have it who choose nothing: shared memory, and TCP where that does not reach.
    Transport { name: "openmpi-default", mpi: Mpi::Open, options: &[], ucx: &[], verbs: false },
    Transport { name: "openmpi-ucx-tcp", mpi: Mpi::Open, options: UCX, ucx: &[("UCX_TLS", "tcp,self")], verbs: false },
    Transport {
        name: "openmpi-ucx-posix",
        mpi: Mpi::Open,
        options: UCX,
        ucx: &[("UCX_TLS", "posix,cma,self")],
        verbs: false,
    },
    Transport {
        name: "openmpi-ucx-sysv",
        mpi: Mpi::Open,
        options: UCX,
        ucx: &[("UCX_TLS", "sysv,self")],
        verbs: false,
    },
    // Messages over verbs, large ones by process_vm_readv(2).
    Transport { name: "openmpi-cma-verbs", mpi: Mpi::Open, options: UCX, ucx: CMA, verbs: true },
    Transport { name: "openmpi-get-verbs", mpi: Mpi::Open, options: UCX, ucx: GET, verbs: true },
    Transport { name: "openmpi-put-verbs", mpi: Mpi::Open, options: UCX, ucx: PUT, verbs: true },
    Transport { name: "openmpi-verbs", mpi: Mpi::Open, options: UCX, ucx: VERBS, verbs: true },
    Transport { name: "mpich-tcp", mpi: Mpi::Mpich, options: &[], ucx: &[("UCX_TLS", "tcp,self")], verbs: false },
    Transport {
        name: "mpich-posix",
        mpi: Mpi::Mpich,
        options: &[],
        ucx: &[("UCX_TLS", "posix,cma,self")],
        verbs: false,
    },
    Transport { name: "mpich-sysv", mpi: Mpi::Mpich, options: &[], ucx: &[("UCX_TLS", "sysv,self")], verbs: false },
    Transport { name: "mpich-cma-verbs", mpi: Mpi::Mpich, options: &[], ucx: CMA, verbs: true },
    Transport { name: "mpich-verbs", mpi: Mpi::Mpich, options: &[], ucx: VERBS, verbs: true },
];

impl Transport {
    /// The transport of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TRANSPORTS.iter().find(|t| t.name == name)
    }

    /// `mpirun` and its options for `ranks` ranks on this host, whatever its number of processors.
    #[must_use]
    pub fn mpirun(&self, ranks: u32) -> Vec<String> {
        let mut words = vec![self.mpi.launcher().to_owned()];
        match self.mpi {
            Mpi::Open => {
                words.push("--oversubscribe".into());
                words.extend(self.options.iter().map(|w| (*w).to_owned()));
                for (name, value) in self.ucx {
                    words.extend(["-x".to_owned(), format!("{name}={value}")]);
                }
            }
            Mpi::Mpich => {
                words.extend(["-launcher".to_owned(), "fork".to_owned()]);
                for (name, value) in self.ucx {
                    words.extend(["-genv".to_owned(), (*name).to_owned(), (*value).to_owned()]);
                }
            }
        }
        words.extend(["-np".to_owned(), ranks.to_string()]);
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_commands_complete() {
        for transport in TRANSPORTS {
            assert_eq!(TRANSPORTS.iter().filter(|t| t.name == transport.name).count(), 1, "{}", transport.name);
            let words = transport.mpirun(4);
            assert_eq!(words.last().map(String::as_str), Some("4"));
            assert!(transport.ucx.iter().all(|(_, value)| words.iter().any(|w| w.contains(value))), "{words:?}");
            assert_eq!(transport.verbs, transport.name.ends_with("verbs"));
        }
    }
}
