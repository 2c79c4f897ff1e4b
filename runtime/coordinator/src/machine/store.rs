//! Published values of one checkpoint or restart.
//!
//! Rule: what is published in a round can be seen from the next round on, whoever is faster; so each slot remembers the
//! value before this round beside the new one, and turning to the next round costs nothing, however many values there are. Hence
//! within a round the same question has the same answer, and thousands ask it at once: it is put together for the first only.
use slackwater_protocol::message::Entry;
use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    /// What rounds up to `since` see.
    before: Option<Vec<u8>>,
    /// What later rounds see.
    value: Vec<u8>,
    /// The round in which `value` was published.
    since: u32,
}

/// Scope and key to value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    scopes: HashMap<String, HashMap<Vec<u8>, Slot>>,
    round: u32,
    /// What was asked for last in this round.
    asked: Vec<(String, Vec<u8>)>,
}

/// To a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The values, in its order.
    Values(Vec<Option<Vec<u8>>>),
    /// Those that were answered last.
    Same,
}

// For the model test's table of seen states; the map's order must not show.
impl Hash for Store {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.round.hash(state);
        self.scopes.values().map(HashMap::len).sum::<usize>().hash(state);
    }
}

impl Store {
    /// Turns to the next round: what was published so far can be seen.
    pub fn next_round(&mut self) {
        self.round += 1;
        self.asked.clear();
    }

    /// Publishes. A key that is published twice in a round holds the later value.
    pub fn publish(&mut self, entries: Vec<Entry>) {
        for Entry { scope, key, value } in entries {
            let round = self.round;
            let slots = match self.scopes.get_mut(&scope) {
                Some(slots) => slots,
                None => self.scopes.entry(scope).or_default(),
            };
            match slots.get_mut(&key) {
                Some(slot) if slot.since < round => {
                    slot.before = Some(std::mem::replace(&mut slot.value, value));
                    slot.since = round;
                }
                Some(slot) => slot.value = value,
                None => {
                    slots.insert(key, Slot { before: None, value, since: round });
                }
            }
        }
    }

    /// What was published under these keys before this round.
    pub fn query(&mut self, keys: Vec<(String, Vec<u8>)>) -> Answer {
        if !keys.is_empty() && keys == self.asked {
            return Answer::Same;
        }
        let values = self.values(&keys);
        self.asked = keys;
        Answer::Values(values)
    }

    /// The same, put together anew.
    pub fn values(&self, keys: &[(String, Vec<u8>)]) -> Vec<Option<Vec<u8>>> {
        let find = |(scope, key): &(String, Vec<u8>)| {
            let slot = self.scopes.get(scope)?.get(key)?;
            if slot.since < self.round { Some(slot.value.clone()) } else { slot.before.clone() }
        };
        keys.iter().map(find).collect()
    }

    /// What was answered last was to a question of somebody else's.
    pub fn forget_answer(&mut self) {
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { scope: "ib".into(), key: key.into(), value: value.into() }
    }

    #[test]
    fn values_are_seen_from_the_next_round_on() {
        let mut store = Store::default();
        let ask = |store: &mut Store| store.query(vec![("ib".into(), b"a".to_vec())]);
        let value = |value: Option<&str>| Answer::Values(vec![value.map(Into::into)]);
        store.publish(vec![entry("a", "1")]);
        assert_eq!(ask(&mut store), value(None));
        store.next_round();
        assert_eq!(ask(&mut store), value(Some("1")));
        store.publish(vec![entry("a", "2"), entry("a", "3")]);
        assert_eq!(ask(&mut store), Answer::Same);
        let others = vec![("socket".into(), b"a".to_vec()), ("ib".into(), b"b".to_vec())];
        assert_eq!(store.query(others), Answer::Values(vec![None, None]));
        assert_eq!(ask(&mut store), value(Some("1")));
        store.next_round();
        assert_eq!(ask(&mut store), value(Some("3")));
    }
}
