//! The vdso: libc has pointers into the old one. The same vdso is moved to its old place; under another kernel the old
//! text comes back as plain memory, with each of its functions replaced by a jump to the new one's.
use super::hole::Here;
use anyhow::{Result, bail};
use slackwater_image::meta::{Process, Range};
use std::collections::HashMap;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vdso {
    /// The process had none.
    Leave,
    /// Move ours to its place: the start of the group in the restored process.
    Move {
        /// Where vvar (or the vdso, where there is no vvar) goes.
        to: u64,
    },
    /// Put these bytes at the old place; ours stays where `hole` puts it.
    Forward {
        /// The old place.
        at: Range,
        /// Its old content, with jumps relative to where our vdso's text will be.
        patches: Vec<Patch>,
    },
}

/// A jump from an old entry point to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// Offset in the old text.
    pub from: u64,
    /// Offset in the new text.
    pub to: u64,
}

fn u16_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(b.get(at..at.checked_add(2)?)?.try_into().ok()?).into())
}
fn u32_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?).into())
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Functions of a vdso: name -> offset. A vdso is a shared object linked at 0; names are in .dynstr by way of .dynsym,
/// whose length is the distance to .dynstr or the hash table's chain count.
pub fn functions(elf: &[u8]) -> HashMap<String, u64> {
    (|| {
        let (phoff, phnum) = (u64_at(elf, 32)? as usize, u16_at(elf, 56)? as usize);
        let dynamic = (0..phnum).map(|i| phoff.saturating_add(i * 56)).find(|&p| u32_at(elf, p) == Some(2))?;
        let (mut symtab, mut strtab, mut hash) = (0, 0, None);
        let mut at = u64_at(elf, dynamic.checked_add(8)?)? as usize;
        loop {
            match (u64_at(elf, at)?, u64_at(elf, at.checked_add(8)?)? as usize) {
                (0, _) => break,
                (4, v) => hash = Some(v),
                (5, v) => strtab = v,
                (6, v) => symtab = v,
                _ => {}
            }
            at += 16;
        }
        let count = match hash {
            Some(h) => u32_at(elf, h.checked_add(4)?)? as usize,
            None => strtab.saturating_sub(symtab) / 24,
        };
        let mut out = HashMap::new();
        for i in 1..count {
            let sym = symtab.checked_add(i * 24)?;
            let (name, info, shndx) = (u32_at(elf, sym)? as usize, *elf.get(sym + 4)?, u16_at(elf, sym + 6)?);
            if info & 15 != 2 || shndx == 0 {
                continue;
            }
            let tail = elf.get(strtab.checked_add(name)?..)?;
            let end = tail.iter().position(|&c| c == 0)?;
            out.insert(String::from_utf8_lossy(&tail[..end]).into_owned(), u64_at(elf, sym + 8)?);
        }
        Some(out)
    })()
    .unwrap_or_default()
}

fn own_content(here: &Here) -> Vec<u8> {
    let (start, len) = (here.vdso.start as *const u8, (here.vdso.end - here.vdso.start) as usize);
    if len == 0 {
        return Vec::new();
    }
    // SAFETY: the kernel maps the vdso readable for the life of the process.
    #[allow(unsafe_code)]
    unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
}

/// Decides for a process that is to be restored here.
///
/// # Errors
/// Its vdso has functions that ours lacks.
pub fn decide(process: &Process, here: &Here) -> Result<Vdso> {
    decide_from(process, here, &own_content(here))
}

fn decide_from(process: &Process, here: &Here, own: &[u8]) -> Result<Vdso> {
    if process.vdso.end == process.vdso.start {
        return Ok(Vdso::Leave);
    }
    let shape =
        |vdso: Range, vvar: Range| (vdso.end - vdso.start, vvar.end - vvar.start, vdso.start.wrapping_sub(vvar.start));
    let same_shape = shape(process.vdso, process.vvar) == shape(here.vdso, here.vvar)
        || process.vvar.end == process.vvar.start && here.vvar.end == here.vvar.start;
    if same_shape && own == process.vdso_content {
        let to = if process.vvar.end > process.vvar.start {
            process.vvar.start.min(process.vdso.start)
        } else {
            process.vdso.start
        };
        return Ok(Vdso::Move { to });
    }
    let (old, new) = (functions(&process.vdso_content), functions(own));
    let mut patches = Vec::new();
    for (name, from) in old {
        match new.get(&name) {
            Some(&to) => patches.push(Patch { from, to }),
            None => bail!(
                "the program was saved on a kernel whose vdso has {name}, which this kernel's lacks: restart on a kernel like {}",
                process.kernel
            ),
        }
    }
    patches.sort_by_key(|p| p.from);
    Ok(Vdso::Forward { at: process.vdso, patches })
}

/// The old text with its functions forwarded to the new text at `new_text`.
pub fn forwarded(content: &[u8], patches: &[Patch], new_text: u64) -> Vec<u8> {
    let mut out = content.to_vec();
    for p in patches {
        let target = new_text + p.to;
        // mov rax, imm64; jmp rax: rax is free at a function's entry.
        let mut code = vec![0x48, 0xb8];
        code.extend_from_slice(&target.to_le_bytes());
        code.extend_from_slice(&[0xff, 0xe0]);
        if let Some(place) = out.get_mut(p.from as usize..p.from as usize + code.len()) {
            place.copy_from_slice(&code);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_kernels_functions() {
        let here = Here::look().unwrap();
        if here.vdso.end > here.vdso.start {
            let f = functions(&own_content(&here));
            assert!(f.contains_key("__vdso_clock_gettime") || f.contains_key("clock_gettime"), "{f:?}");
        }
    }

    #[test]
    fn another_vdso_is_forwarded_and_the_same_is_moved() {
        let here = Here::look().unwrap();
        let own = own_content(&here);
        if own.is_empty() {
            return;
        }
        let mut p = Process { vdso: here.vdso, vvar: here.vvar, vdso_content: own.clone(), ..Process::default() };
        assert_eq!(decide_from(&p, &here, &own).unwrap(), Vdso::Move { to: here.vdso_group().start });
        let last = p.vdso_content.len() - 1;
        p.vdso_content[last] ^= 1;
        let Vdso::Forward { patches, .. } = decide_from(&p, &here, &own).unwrap() else { panic!("moved") };
        assert!(!patches.is_empty());
        let text = forwarded(&p.vdso_content, &patches, 0x1000_0000);
        let at = patches[0].from as usize;
        assert_eq!(text[at..at + 2], [0x48, 0xb8]);
        assert_eq!(u64_at(&text, at + 2), Some(0x1000_0000 + patches[0].to));
    }

    #[test]
    fn nonsense_has_no_functions() {
        assert!(functions(b"\x7fELF").is_empty());
        assert!(functions(&[0xff; 4096]).is_empty());
    }
}
