//! The program's descriptors, and what else it may share, during a checkpoint: surveyed when this process stands, filled in when all do.
use crate::shared::Shared;
use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use slackwater_image::meta::SECTION_OBJECTS;
use slackwater_objects::{Table, ipc, model::Kind};
use slackwater_protocol::message::{DescriptorKey, SharedRange};

/// What is known so far.
#[derive(Default)]
pub struct Survey {
    table: Option<Table>,
    shared: Shared,
    /// What made [`Survey::fill`] fail passes when the program runs on.
    pub passing: bool,
}

impl Survey {
    /// What there is, but for the descriptors in `exclude`; the answer lets the coordinator find out what processes share.
    ///
    /// # Errors
    /// A descriptor that cannot be brought back.
    pub fn take(&mut self, exclude: &[i32]) -> Result<(Vec<DescriptorKey>, Vec<SharedRange>), String> {
        let table = slackwater_objects::survey(exclude).map_err(|e| e.to_string())?;
        let keys = slackwater_objects::keys(&table).map(|(fd, dev, ino)| DescriptorKey { fd, dev, ino }).collect();
        self.table = Some(table);
        let (shared, ranges) = Shared::take()?;
        self.shared = shared;
        Ok((keys, ranges))
    }

    /// All bytes that this process sent have arrived. All processes stand.
    pub fn quiet(&mut self) -> bool {
        self.table.as_mut().is_none_or(slackwater_objects::quiet)
    }

    /// The checkpoint is off: takes back what [`Survey::quiet`] changed.
    pub fn settle(&mut self) {
        self.table.iter_mut().for_each(slackwater_objects::settle);
    }

    /// Offsets, counters, unread bytes, System V objects but for those that others save; sections of the image.
    /// `exclude` as for [`Survey::take`].
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn fill(&mut self, exclude: &[i32], elsewhere: &[SharedRange]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let table = self.table.get_or_insert_default();
        slackwater_objects::fill(table).map_err(|e| {
            self.passing = e.passing;
            e.to_string()
        })?;
        for open in &mut table.opens {
            if let Kind::Epoll { watched } = &mut open.kind {
                // Whoever owns a protected descriptor makes it anew, and has it watched again.
                watched.retain(|w| !exclude.contains(&w.fd));
            }
        }
        let objects = postcard::to_allocvec(table).map_err(|e| e.to_string())?;
        let mut sections = alloc::vec![(SECTION_OBJECTS.to_string(), objects)];
        sections.extend(self.shared.fill(elsewhere)?.map(|s| (ipc::SECTION.to_string(), s)));
        Ok(sections)
    }
}
