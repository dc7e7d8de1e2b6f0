#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    cowhand_fuzz_oracle::packed(input);
});
