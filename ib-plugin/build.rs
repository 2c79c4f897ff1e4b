//! Symbol versions: the preloaded library answers to the very names and versions that libibverbs exports.
fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=exports.map");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--version-script={dir}/exports.map");
    println!("cargo::rustc-cdylib-link-arg=-fuse-ld=lld");
}
