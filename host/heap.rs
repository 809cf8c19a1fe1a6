//! The process's heap: jemalloc, for the C libraries too where the platform has it so. Why stands in docs/decisions/0026.
//!
//! A file of its own, not a part of the library: a benchmark that stands beside the program takes the same heap.

#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Two arenas, not four a core, and what is free goes back after a second, not ten: as fast, in less memory.
// SAFETY: jemalloc has a `const char *` of this name for the program to define. A reference to an array is the address of its bytes,
// which are there as long as the program and end in a zero.
#[cfg_attr(all(target_os = "linux", target_env = "gnu"), unsafe(export_name = "malloc_conf"))]
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), unsafe(export_name = "_rjem_malloc_conf"))]
pub static SETTINGS: &[u8; 47] = b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0\0";
