//! For build scripts of libraries with hooks: one list file says which names the library exports; from it come the
//! linker's arguments, and (feature `check`) the test that the library exports exactly those.
//!
//! A line is `name`, or `name@VERSION` / `name@@VERSION` for `versioned!`; then optionally `nowrap`, for an export that is not a wrapper. `#` begins a comment.
use std::collections::BTreeMap;
use std::path::Path;

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The symbol.
    pub name: String,
    /// Its version, and whether it is the default one.
    pub version: Option<(String, bool)>,
    /// Uses of it inside the library go to `__wrap_name`.
    pub wrap: bool,
}

/// Reads a list; the error names the line.
pub fn parse(text: &str) -> Result<Vec<Export>, String> {
    let mut exports = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(symbol) = words.next() else { continue };
        let wrap = match words.next() {
            None => true,
            Some("nowrap") => false,
            Some(other) => return Err(format!("line {}: {other:?} is not known; it may be `nowrap`", i + 1)),
        };
        let (name, version) = match symbol.split_once('@') {
            None => (symbol, None),
            Some((name, v)) => (name, Some((v.trim_start_matches('@').to_string(), v.starts_with('@')))),
        };
        let export = Export { name: name.to_string(), wrap: wrap && version.is_none(), version };
        if exports.contains(&export) {
            return Err(format!("line {}: {symbol} is listed twice", i + 1));
        }
        exports.push(export);
    }
    Ok(exports)
}

/// `-Wl,--wrap=` for each wrapper.
pub fn wrap_args(exports: &[Export]) -> Vec<String> {
    exports.iter().filter(|e| e.wrap).map(|e| format!("-Wl,--wrap={}", e.name)).collect()
}

/// A version script with an (empty) node per version, each depending on the one before it, in order of appearance;
/// None when no name has a version.
pub fn version_script(exports: &[Export]) -> Option<String> {
    let mut nodes: BTreeMap<&str, ()> = BTreeMap::new();
    let mut script = String::new();
    let mut last: Option<&str> = None;
    for (version, _) in exports.iter().filter_map(|e| e.version.as_ref()) {
        if nodes.insert(version, ()).is_none() {
            let parent = last.map(|l| format!(" {l}")).unwrap_or_default();
            script += &format!("{version} {{ }}{parent};\n");
            last = Some(version);
        }
    }
    (!script.is_empty()).then_some(script)
}

/// Call this from `build.rs` of a cdylib: prints cargo's directives for the list at `list` (relative to the package).
/// A list that cannot be read or is wrong ends the build with a message.
#[allow(clippy::print_stdout)] // cargo reads it there
pub fn hooks(list: &str) {
    println!("cargo::rerun-if-changed={list}");
    let fail = |why: String| -> ! {
        eprintln!("{list}: {why}");
        std::process::exit(1)
    };
    let text = std::fs::read_to_string(list).unwrap_or_else(|e| fail(format!("cannot be read: {e}")));
    let exports = parse(&text).unwrap_or_else(|e| fail(e));
    for arg in wrap_args(&exports) {
        println!("cargo::rustc-cdylib-link-arg={arg}");
    }
    if let Some(script) = version_script(&exports) {
        let out = std::env::var("OUT_DIR").unwrap_or_else(|_| fail("OUT_DIR is not set: not a build script?".into()));
        let path = Path::new(&out).join("version.map");
        std::fs::write(&path, script).unwrap_or_else(|e| fail(format!("{} cannot be written: {e}", path.display())));
        // rustc passes a version script of its own; lld takes both, GNU ld does not.
        println!("cargo::rustc-cdylib-link-arg=-Wl,--version-script={}", path.display());
        println!("cargo::rustc-cdylib-link-arg=-fuse-ld=lld");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_becomes_arguments() {
        let list = "# what we wrap\nopen64\nslackwater_park nowrap # for plugins\n\nibv_open_device@IBVERBS_1.0\nibv_open_device@@IBVERBS_1.1\nibv_close_device@@IBVERBS_1.1\n";
        let exports = parse(list).unwrap();
        assert_eq!(exports.len(), 5);
        assert_eq!(wrap_args(&exports), ["-Wl,--wrap=open64"]);
        assert_eq!(version_script(&exports).unwrap(), "IBVERBS_1.0 { };\nIBVERBS_1.1 { } IBVERBS_1.0;\n");
        assert_eq!(version_script(&parse("open").unwrap()), None);
    }

    #[test]
    fn wrong_lists_are_named() {
        assert_eq!(parse("a\nb wrap").unwrap_err(), "line 2: \"wrap\" is not known; it may be `nowrap`");
        assert_eq!(parse("a\n\na").unwrap_err(), "line 3: a is listed twice");
    }
}
