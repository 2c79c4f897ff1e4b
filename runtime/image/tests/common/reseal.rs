//! Makes the checksums of changed bytes right again, as far as they still look like an image: a hostile hand can do so too,
//! and what lies behind the checksums must hold without them. Used by the tests and by the fuzz target.
use slackwater_image::{
    checksum::checksum,
    layout::{CHUNK_LEN, Directory, FOOTER_LEN, Footer, HEADER_LEN},
};

/// A part of the file, if it is one.
fn part(bytes: &[u8], offset: u64, len: u64) -> Option<std::ops::Range<usize>> {
    let range = usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(len)?).ok()?;
    (range.end <= bytes.len()).then_some(range)
}

/// Seals header, chunks, index, sections, directory and footer. The footer's magic and length are made right, so that only
/// its offset of the directory is taken from the bytes.
pub fn reseal(bytes: &mut Vec<u8>) {
    let Some(end) = bytes.len().checked_sub(FOOTER_LEN).filter(|end| *end >= HEADER_LEN) else { return };
    let sum = checksum(&bytes[..HEADER_LEN - 8]);
    bytes[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
    let offset = u64::from_le_bytes(bytes[end + 8..end + 16].try_into().expect("eight bytes"));
    let offset = usize::try_from(offset).unwrap_or(end).min(end);
    let mut encoded = bytes[offset..end].to_vec();
    bytes.truncate(offset);
    if let Ok(mut directory) = postcard::from_bytes::<Directory>(&encoded) {
        for block in &mut directory.index {
            let Some(range) = part(bytes, block.offset, u64::from(block.count) * CHUNK_LEN as u64) else { continue };
            for at in range.clone().step_by(CHUNK_LEN) {
                let field = |from: usize, len: usize| bytes[at + from..at + from + len].to_vec();
                let offset = u64::from_le_bytes(field(8, 8).try_into().expect("eight bytes"));
                let stored = u32::from_le_bytes(field(28, 4).try_into().expect("four bytes"));
                let zero = bytes[at + 32] == 0;
                if let Some(content) = part(bytes, offset, stored.into()).filter(|_| !zero) {
                    let sum = checksum(&bytes[content]);
                    bytes[at + 16..at + 24].copy_from_slice(&sum.to_le_bytes());
                }
            }
            block.checksum = checksum(&bytes[range]);
        }
        for section in &mut directory.sections {
            if let Some(range) = part(bytes, section.offset, section.len) {
                section.checksum = checksum(&bytes[range]);
            }
        }
        encoded = postcard::to_allocvec(&directory).expect("postcard");
    }
    bytes.extend_from_slice(&encoded);
    let footer = Footer {
        directory: offset as u64,
        directory_len: encoded.len() as u64,
        directory_sum: checksum(&encoded),
        file_len: (offset + encoded.len() + FOOTER_LEN) as u64,
    };
    bytes.extend_from_slice(&footer.encode());
}
