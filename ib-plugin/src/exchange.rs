//! What processes tell each other at a checkpoint and at a restart, and under which keys.
//!
//! A process publishes one *card* under its member number: its ports, and at a restart what its queue pairs and remote keys are called
//! now. At a checkpoint there is also one record for each QP, under the QP's own name. Member numbers may have gaps: they are asked for
//! in growing batches until as many cards are found as there are members; mostly the first is all.
//!
//! At a restart everybody reads all cards whole, though it is connected to few: a new connection may lead to any process, and a new
//! number must be nobody's old one.
use crate::ident::PortMap;
use crate::peers::QpId;
use crate::wire::{Reader, Writer};
use alloc::vec::Vec;
use slackwater_plugin::{Info, publish, query};

/// Scope of all keys; also the plugin's name.
pub(crate) const SCOPE: &core::ffi::CStr = c"ib";

/// What a process calls the objects of one device, and what the driver calls them now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// GUID of the node, as first seen.
    pub(crate) guid: u64,
    /// Numbers of queue pairs.
    pub(crate) qps: Vec<(u32, u32)>,
    /// Remote keys.
    pub(crate) keys: Vec<(u32, u32)>,
}

/// A process's card.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) member: u64,
    pub(crate) ports: Vec<PortMap>,
    /// One a device; none at a checkpoint.
    pub(crate) names: Vec<Names>,
}

impl Card {
    fn encode(&mut self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.member);
        w.u32(self.ports.len() as u32);
        for p in &self.ports {
            p.put(&mut w);
        }
        w.u32(self.names.len() as u32);
        for names in &mut self.names {
            w.u64(names.guid);
            w.pairs(&mut names.qps);
            w.pairs(&mut names.keys);
        }
        w.0
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        let member = r.u64()?;
        let ports = (0..r.u32()?).map(|_| PortMap::get(&mut r)).collect::<Option<_>>()?;
        let names = (0..r.u32()?).map(|_| Some(Names { guid: r.u64()?, qps: r.pairs()?, keys: r.pairs()? }));
        Some(Self { member, ports, names: names.collect::<Option<_>>()? })
    }

    pub(crate) fn publish(mut self) -> bool {
        publish(SCOPE, &card_key(self.member), &self.encode())
    }

    /// The cards of all members; None: the exchange failed, or fewer came than there are members.
    pub(crate) fn all(info: &Info) -> Option<Vec<Self>> {
        Self::of(info.members)
    }

    /// In a restart: how many cards there are, for programs that are started after it.
    pub(crate) fn count(members: u32) -> bool {
        publish(SCOPE, COUNT, &members.to_le_bytes())
    }

    /// In a program that was started since: the cards of the last restart; None: there was none, or the exchange failed.
    pub(crate) fn of_last_restart() -> Option<Vec<Self>> {
        let count = query(SCOPE, &[COUNT])?.pop()??;
        Self::of(Reader(&count).u32()?)
    }

    fn of(members: u32) -> Option<Vec<Self>> {
        let mut cards = Vec::new();
        let mut from = 0u64;
        // Without gaps the first is all; then each question twice as long.
        let mut batch = u64::from(members) + 64;
        while (cards.len() as u32) < members && from < 1 << 20 {
            let keys: Vec<[u8; 9]> = (from..from + batch).map(card_key).collect();
            let refs: Vec<&[u8]> = keys.iter().map(<[u8; 9]>::as_slice).collect();
            for value in query(SCOPE, &refs)?.into_iter().flatten() {
                cards.push(Self::decode(&value)?);
            }
            from += batch;
            batch *= 2;
        }
        ((cards.len() as u32) >= members).then_some(cards)
    }
}

/// Key of the number of cards.
const COUNT: &[u8] = b"n";

fn card_key(member: u64) -> [u8; 9] {
    let mut key = [b'm'; 9];
    key[1..].copy_from_slice(&member.to_le_bytes());
    key
}

/// Key of a QP's record.
pub(crate) fn qp_key(id: QpId) -> [u8; 13] {
    let mut key = [b'q'; 13];
    key[1..9].copy_from_slice(&id.0.to_le_bytes());
    key[9..].copy_from_slice(&id.1.to_le_bytes());
    key
}

/// What a QP's owner says of it while the computation is quiesced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// State of the driver's QP.
    pub(crate) state: u8,
    /// The number of the QP that it is connected to.
    pub(crate) peer: u32,
    /// Remote operations that it permits.
    pub(crate) access: u32,
    /// Two-sided requests posted.
    pub(crate) sent: u64,
    /// Messages received.
    pub(crate) received: u64,
    /// The longest of the messages that may be still to come.
    pub(crate) longest: u32,
}

impl Counts {
    pub(crate) fn publish(&self, id: QpId) -> bool {
        let mut w = Writer::default();
        w.u8(self.state);
        w.u32(self.peer);
        w.u32(self.access);
        w.u64(self.sent);
        w.u64(self.received);
        w.u32(self.longest);
        publish(SCOPE, &qp_key(id), &w.0)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        Some(Self {
            state: r.u8()?,
            peer: r.u32()?,
            access: r.u32()?,
            sent: r.u64()?,
            received: r.u64()?,
            longest: r.u32()?,
        })
    }
}

/// Values under keys of one kind; None: the exchange failed.
pub(crate) fn ask<K: AsRef<[u8]>>(keys: &[K]) -> Option<Vec<Option<Vec<u8>>>> {
    if keys.is_empty() {
        return Some(Vec::new());
    }
    let refs: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    query(SCOPE, &refs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_and_counts_survive_the_wire() {
        let mut card = Card {
            member: 7,
            ports: alloc::vec![PortMap { id: (9, 1), lids: (3, 4), gids: alloc::vec![([1; 16], [2; 16])] }],
            names: alloc::vec![Names { guid: 9, qps: alloc::vec![(17, 40)], keys: alloc::vec![(256, 4), (512, 2)] }],
        };
        let bytes = card.encode();
        assert_eq!(Card::decode(&bytes), Some(card));
        for n in 0..bytes.len() {
            assert_eq!(Card::decode(&bytes[..n]), None, "a cut card is no card");
        }
        assert_eq!(Counts::decode(&[]), None);
    }
}
