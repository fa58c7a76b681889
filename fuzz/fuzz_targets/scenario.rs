#![no_main]
libfuzzer_sys::fuzz_target!(init: stowage_fuzz::panics_unwind(), |data: &[u8]| stowage_fuzz::scenario(data));
