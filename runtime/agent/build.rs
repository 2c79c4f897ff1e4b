//! Link arguments of the preloaded library.
fn main() {
    // The symbols that it defines for itself must not be taken by the program's (a program may export `write`, too).
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,now");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--gc-sections");
}
