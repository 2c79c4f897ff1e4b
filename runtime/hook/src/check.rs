//! For tests: the names that a built shared library exports, compared with the list it was built from.
use object::read::elf::{ElfFile64, FileHeader, Sym};
use object::{LittleEndian, elf};
use std::collections::BTreeSet;

/// The dynamic symbols that `library` (the file's bytes) defines, as `name` or `name@VERSION` / `name@@VERSION`, sorted.
pub fn exported(library: &[u8]) -> Result<Vec<String>, String> {
    let read = |e: object::Error| format!("not a readable ELF library: {e}");
    let file = ElfFile64::<LittleEndian>::parse(library).map_err(read)?;
    let header = file.elf_header();
    let endian = file.endian();
    let sections = header.sections(endian, library).map_err(read)?;
    let symbols = sections.symbols(endian, library, elf::SHT_DYNSYM).map_err(read)?;
    let versions = sections.versions(endian, library).map_err(read)?;
    let mut names = BTreeSet::new();
    for (index, symbol) in symbols.enumerate() {
        if symbol.is_undefined(endian) || symbol.st_bind() == elf::STB_LOCAL || symbol.st_shndx(endian) == elf::SHN_ABS
        {
            continue;
        }
        let name = symbols.symbol_name(endian, symbol).map_err(read)?;
        let mut name = String::from_utf8_lossy(name).into_owned();
        if let Some(table) = &versions {
            let v = table.version_index(endian, index);
            if let Some(version) = table.version(v).map_err(read)?.filter(|_| v.index() > 1) {
                name += if v.is_hidden() { "@" } else { "@@" };
                name += &String::from_utf8_lossy(version.name());
            }
        }
        names.insert(name);
    }
    Ok(names.into_iter().collect())
}

/// Does `library` export exactly what `list` (see [`build`](crate::build)'s head for its form) says? The error names each difference.
#[cfg(feature = "build")]
pub fn matches_list(library: &[u8], list: &str) -> Result<(), String> {
    let want: BTreeSet<String> = crate::build::parse(list)?
        .into_iter()
        .map(|e| match e.version {
            None => e.name,
            Some((v, default)) => format!("{}{}{v}", e.name, if default { "@@" } else { "@" }),
        })
        .collect();
    let have: BTreeSet<String> = exported(library)?.into_iter().collect();
    let missing: Vec<&str> = want.difference(&have).map(String::as_str).collect();
    let extra: Vec<&str> = have.difference(&want).map(String::as_str).collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    Err(format!("listed but not exported: [{}]; exported but not listed: [{}]", missing.join(" "), extra.join(" ")))
}
