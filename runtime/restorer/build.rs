//! Links a static, position-independent program without start files: nothing but what is in this crate may run.
fn main() {
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,-z,norelro",
        "-Wl,-z,noexecstack",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,-e,restorer_entry",
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
