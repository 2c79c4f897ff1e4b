//! Sockets: all of the computation's at once, by `slackwater-socket`, in the root of the tree.
use std::collections::HashMap;
use std::io;

use slackwater_socket::model::Socket;

use super::{External, Id, Prepared, RebuildError, Result, outside};
use crate::model::Kind;

/// All sockets of the computation.
pub fn all(p: &mut Prepared<'_>) -> Result<()> {
    let tables = p.tables;
    let mut leads: Vec<Id> = Vec::new();
    let mut sockets: Vec<&Socket> = Vec::new();
    let socket = |id: Id| match &tables[id.0].1.opens[id.1].kind {
        Kind::Socket(socket) => Some(&**socket),
        _ => None,
    };
    for (lead, group) in p.groups.iter() {
        let Some(first) = socket(lead) else { continue };
        // What waits at a listener one of the processes that have it knows.
        let knows = group.ids.iter().filter_map(|id| socket(*id)).find(|socket| !socket.backlog.is_empty());
        leads.push(lead);
        sockets.push(knows.unwrap_or(first));
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
                format!("a connection {} leads out of the computation", slackwater_socket::rebuild::show(sockets[i])),
                io::Error::other("--external=fail was asked for; with --external=reset it comes back broken"),
            ));
        }
    }
    // What was under way in a socket: another socket, or made already.
    let index: HashMap<Id, usize> = leads.iter().enumerate().map(|(i, lead)| (*lead, i)).collect();
    let rights = |i: usize, open: u32, made: &[Option<i32>]| {
        let lead = p.groups.lead((leads[i].0, open as usize));
        if p.leads_out.contains(&lead) {
            return outside::standard(p, lead, -1);
        }
        index.get(&lead).map_or_else(|| p.made.get(&lead).copied(), |&i| made[i])
    };
    let made = slackwater_socket::rebuild::all(&sockets, p.base, &rights).map_err(|e| RebuildError {
        member: tables[leads[e.index].0].0,
        fd: p.open(leads[e.index]).fd,
        what: e.what,
        source: Some(e.source),
    })?;
    for (&lead, fd) in leads.iter().zip(made.fds) {
        p.made.insert(lead, fd);
    }
    p.known = made.known;
    for (i, what) in made.warnings {
        p.warn(leads[i], what);
    }
    Ok(())
}
