//! Talking to the computation's coordinator: init announces the restart, each member joins.
use crate::Generation;
use anyhow::{Context, Result, anyhow, bail};
use slackwater_image::meta::Process;
use slackwater_protocol::auth::{Role, Secret};
use slackwater_protocol::client::Client;
use slackwater_protocol::command::{Reply, Request, RestartMember};
use slackwater_protocol::message::{FromProcess, ToProcess};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the coordinator may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where it is, and what proves that we may talk to it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its address.
    pub address: SocketAddr,
    /// The computation's secret.
    pub secret: Secret,
}

/// A random number, not 0.
#[allow(unsafe_code)] // getrandom(2)
pub fn token() -> Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: eight bytes of ours.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n != 8 {
        bail!("no random numbers: {}", std::io::Error::last_os_error());
    }
    Ok(u64::from_le_bytes(bytes) | 1)
}

/// Tells the coordinator who will join. The connection must stay open until it says `Restarted`: see [`outcome`].
pub fn announce(place: &Place, token: u64, generation: &Generation) -> Result<Client> {
    let mut client = Client::connect(place.address, &place.secret, Role::Command)?;
    client.set_timeout(Some(PATIENCE))?;
    let stopped = |member| generation.manifest.members.iter().any(|m| m.member == member && m.stopped);
    let saved = generation.saved.iter();
    let members = saved.map(|s| RestartMember { member: s.member, pid: s.process.pid, stopped: stopped(s.member) });
    let members = members.collect();
    let root_pid = generation.manifest.root_pid;
    client.send(&Request::Restart { token, generation: generation.manifest.generation, root_pid, members })?;
    match client.receive()? {
        Reply::Expecting => Ok(client),
        Reply::Failed { reason } => Err(anyhow!("the coordinator refuses the restart: {reason}")),
        other => Err(anyhow!("the coordinator answered {other:?}: it is of another version")),
    }
}

/// What became of the restart; None: not known yet. To be asked when the connection is readable.
pub fn outcome(client: &mut Client) -> Option<Result<()>> {
    match client.receive() {
        Ok(Reply::Restarted) => Some(Ok(())),
        Ok(Reply::Failed { reason }) => Some(Err(anyhow!("the restart failed: {reason}"))),
        Ok(_) => None,
        Err(e) => Some(Err(anyhow!("the restart failed: {e}"))),
    }
}

/// Joins as this process. What follows on the connection that comes back is the agent's.
pub fn join(place: &Place, process: &Process, member: u64, generation: u64) -> Result<TcpStream> {
    let mut client = Client::connect(place.address, &place.secret, Role::Process)?;
    client.send(&FromProcess::Join {
        token: 0,
        pid: process.pid,
        ppid: crate::sys::ppid(),
        exe: process.exe.clone(),
        host: hostname(),
        restarted_from: Some(generation),
    })?;
    client.set_timeout(Some(PATIENCE))?;
    let answer = client.receive().context("waiting for the coordinator to take us in")?;
    client.set_timeout(None)?;
    match answer {
        ToProcess::Joined { member: m } if m == member => Ok(client.into_stream()),
        other => Err(anyhow!("the coordinator answered {other:?}, and Joined as member {member} was expected")),
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|h| h.trim().to_string()).unwrap_or_default()
}
