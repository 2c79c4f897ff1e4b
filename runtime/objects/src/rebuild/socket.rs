//! Sockets: all of the computation's at once, by `slackwater-socket`, in the root of the tree.
use std::io;

use slackwater_socket::model::Socket;

use super::{External, Id, Prepared, RebuildError, Result, outside};
use crate::model::Kind;

/// All sockets of the computation.
pub fn all(p: &mut Prepared<'_>) -> Result<()> {
    let tables = p.tables;
    let mut leads: Vec<Id> = Vec::new();
    let mut sockets: Vec<&Socket> = Vec::new();
    for (lead, _) in p.groups.iter() {
        if let Kind::Socket(socket) = &tables[lead.0].1.opens[lead.1].kind {
            leads.push(lead);
            sockets.push(socket);
        }
    }
    let peers = slackwater_socket::rebuild::peers(&sockets);
    for (i, &lead) in leads.iter().enumerate() {
        if !peers.outside[i] {
            continue;
        }
        if outside::follows(p, lead).is_some() {
            p.leads_out.insert(lead);
        } else if p.options.external == External::Fail {
            return Err(p.error(
                lead,
                "a connection that leads out of the computation (--external=fail)",
                io::Error::from_raw_os_error(libc::ECONNRESET),
            ));
        }
    }
    let made = slackwater_socket::rebuild::all(&sockets, p.base).map_err(|e| RebuildError {
        member: tables[leads[e.index].0].0,
        fd: p.open(leads[e.index]).fd,
        what: e.what,
        source: Some(e.source),
    })?;
    for (&lead, fd) in leads.iter().zip(made.fds) {
        p.made.insert(lead, fd);
    }
    for (i, what) in made.warnings {
        p.warn(leads[i], what);
    }
    Ok(())
}
