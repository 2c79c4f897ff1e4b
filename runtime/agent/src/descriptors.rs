//! The program's descriptors during a checkpoint: surveyed when this process stands, filled in when all do.
use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use slackwater_objects::{Table, model::Kind};
use slackwater_protocol::message::DescriptorKey;

/// What is known so far.
#[derive(Default)]
pub struct Survey(Option<Table>);

impl Survey {
    /// What there is, but for `exclude`; the answer lets the coordinator find out what processes share.
    ///
    /// # Errors
    /// A descriptor that cannot be brought back.
    pub fn take(&mut self, exclude: &[i32]) -> Result<Vec<DescriptorKey>, String> {
        let table = slackwater_objects::survey(exclude).map_err(|e| e.to_string())?;
        let keys = slackwater_objects::keys(&table).map(|(fd, dev, ino)| DescriptorKey { fd, dev, ino }).collect();
        self.0 = Some(table);
        Ok(keys)
    }

    /// All bytes that this process sent have arrived. All processes stand.
    pub fn quiet(&self) -> bool {
        self.0.as_ref().is_none_or(slackwater_objects::quiet)
    }

    /// Offsets, counters, unread bytes; the section of the image. `exclude` as for [`Survey::take`].
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn fill(&mut self, exclude: &[i32]) -> Result<Vec<u8>, String> {
        let table = self.0.get_or_insert_default();
        slackwater_objects::fill(table).map_err(|e| e.to_string())?;
        for open in &mut table.opens {
            if let Kind::Epoll { watched } = &mut open.kind {
                // Whoever owns a protected descriptor makes it anew, and has it watched again.
                watched.retain(|w| !exclude.contains(&w.fd));
            }
        }
        postcard::to_allocvec(table).map_err(|e| e.to_string())
    }
}
