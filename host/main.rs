//! Parse, run, exit code.

/// The C library gives every thread a heap, up to eight a core; what one thread frees in the heap of another stays there.
/// Two of them did as much in as much time, with a quarter less memory (`cargo x peers`).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn few_heaps() {
    // SAFETY: it sets a number of the allocator's, before there is a second thread. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn few_heaps() {}

fn main() -> std::process::ExitCode {
    few_heaps();
    chainweir::cli::main()
}
