//! Which descriptions of which processes are one.
use std::collections::{BTreeMap, HashMap, HashSet};

use super::Id;
use crate::model::{Kind, Table};

/// One open file description of the computation.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// All places where it stands; the first is its lead.
    pub ids: Vec<Id>,
    /// How many processes hold it.
    pub processes: usize,
    /// It is under way in a Unix socket.
    pub under_way: bool,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    lead: HashMap<Id, Id>,
    groups: BTreeMap<Id, Group>,
}

impl Groups {
    /// Joins what kcmp(2) found to be one.
    pub fn find(tables: &[(u64, Table)], shared: &[Vec<(u64, i32)>]) -> Self {
        let mut id: HashMap<(u64, i32), Id> = HashMap::new();
        let mut parent: HashMap<Id, Id> = HashMap::new();
        for (t, (member, table)) in tables.iter().enumerate() {
            for d in &table.descriptors {
                id.insert((*member, d.fd), (t, d.open as usize));
            }
            for (o, held) in table.held().into_iter().enumerate() {
                parent.insert((t, o), (t, o));
                if !held {
                    id.insert((*member, table.opens[o].fd), (t, o));
                }
            }
        }
        fn root(parent: &HashMap<Id, Id>, mut at: Id) -> Id {
            while parent[&at] != at {
                at = parent[&at];
            }
            at
        }
        for one in shared {
            let mut ids = one.iter().filter_map(|key| id.get(key).copied());
            let Some(first) = ids.next() else { continue };
            for other in ids {
                let (a, b) = (root(&parent, first), root(&parent, other));
                parent.insert(a.max(b), a.min(b));
            }
        }
        let mut out = Self::default();
        let mut all: Vec<Id> = parent.keys().copied().collect();
        all.sort_unstable();
        for at in all {
            let lead = root(&parent, at);
            out.lead.insert(at, lead);
            out.groups.entry(lead).or_default().ids.push(at);
        }
        for group in out.groups.values_mut() {
            group.processes = group.ids.iter().map(|id| id.0).collect::<HashSet<_>>().len();
        }
        for (t, (_, table)) in tables.iter().enumerate() {
            for open in &table.opens {
                let Kind::Socket(socket) = &open.kind else { continue };
                for right in socket.queue.iter().flat_map(|m| &m.rights) {
                    let lead = out.lead((t, *right as usize));
                    if let Some(group) = out.groups.get_mut(&lead) {
                        group.under_way = true;
                    }
                }
            }
        }
        out
    }

    /// The lead of a description's group.
    pub fn lead(&self, id: Id) -> Id {
        self.lead.get(&id).copied().unwrap_or(id)
    }

    /// A group by its lead.
    pub fn of(&self, lead: Id) -> &Group {
        &self.groups[&lead]
    }

    /// All groups by lead.
    pub fn iter(&self) -> Vec<(Id, Group)> {
        self.groups.iter().map(|(lead, group)| (*lead, group.clone())).collect()
    }
}
