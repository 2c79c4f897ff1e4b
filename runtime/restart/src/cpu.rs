//! Does this processor have what the saved program may have chosen at its start?
//!
//! A program picks code for the processor it starts on (glibc's IFUNCs, for one) and never asks again. So each
//! instruction-set extension that the image lists must be here too. Bits that say nothing of instructions (speed hints,
//! mitigations, model details) are not compared.

/// (word of `Process::cpu_features`, bit, name). Words on x86-64: XCR0; CPUID 1: ecx high, edx low; CPUID 7.0: ebx high,
/// ecx low; CPUID 7.0: edx.
#[cfg(target_arch = "x86_64")]
const FEATURES: &[(usize, u32, &str)] = &[
    (0, 2, "AVX state"),
    (0, 5, "AVX-512 opmask state"),
    (0, 6, "AVX-512 upper state"),
    (0, 7, "AVX-512 high registers"),
    (0, 9, "protection key state"),
    (0, 17, "AMX configuration state"),
    (0, 18, "AMX tile state"),
    (1, 32, "SSE3"),
    (1, 32 + 1, "PCLMULQDQ"),
    (1, 32 + 9, "SSSE3"),
    (1, 32 + 12, "FMA"),
    (1, 32 + 13, "CMPXCHG16B"),
    (1, 32 + 19, "SSE4.1"),
    (1, 32 + 20, "SSE4.2"),
    (1, 32 + 22, "MOVBE"),
    (1, 32 + 23, "POPCNT"),
    (1, 32 + 25, "AES"),
    (1, 32 + 28, "AVX"),
    (1, 32 + 29, "F16C"),
    (1, 32 + 30, "RDRAND"),
    (2, 32, "FSGSBASE"),
    (2, 32 + 3, "BMI1"),
    (2, 32 + 5, "AVX2"),
    (2, 32 + 8, "BMI2"),
    (2, 32 + 11, "RTM"),
    (2, 32 + 16, "AVX512F"),
    (2, 32 + 17, "AVX512DQ"),
    (2, 32 + 18, "RDSEED"),
    (2, 32 + 19, "ADX"),
    (2, 32 + 21, "AVX512IFMA"),
    (2, 32 + 23, "CLFLUSHOPT"),
    (2, 32 + 24, "CLWB"),
    (2, 32 + 28, "AVX512CD"),
    (2, 32 + 29, "SHA"),
    (2, 32 + 30, "AVX512BW"),
    (2, 32 + 31, "AVX512VL"),
    (2, 1, "AVX512VBMI"),
    (2, 4, "protection keys"),
    (2, 5, "WAITPKG"),
    (2, 6, "AVX512VBMI2"),
    (2, 8, "GFNI"),
    (2, 9, "VAES"),
    (2, 10, "VPCLMULQDQ"),
    (2, 11, "AVX512VNNI"),
    (2, 12, "AVX512BITALG"),
    (2, 14, "AVX512VPOPCNTDQ"),
    (2, 22, "RDPID"),
    (2, 27, "MOVDIRI"),
    (2, 28, "MOVDIR64B"),
    (3, 8, "AVX512VP2INTERSECT"),
    (3, 14, "SERIALIZE"),
    (3, 22, "AMX-BF16"),
    (3, 23, "AVX512FP16"),
    (3, 24, "AMX-TILE"),
    (3, 25, "AMX-INT8"),
];

#[cfg(target_arch = "aarch64")]
const FEATURES: &[(usize, u32, &str)] = &[];

/// Names of what `wanted` (as the agent recorded it) has and this processor has not.
pub fn missing(wanted: &[u64]) -> Vec<&'static str> {
    lacking(wanted, &present())
}

fn lacking(wanted: &[u64], have: &[u64]) -> Vec<&'static str> {
    let set = |words: &[u64], word: usize, bit: u32| words.get(word).is_some_and(|w| w >> bit & 1 != 0);
    FEATURES.iter().filter(|(w, b, _)| set(wanted, *w, *b) && !set(have, *w, *b)).map(|f| f.2).collect()
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // xgetbv
fn present() -> Vec<u64> {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    let (one, seven) = (__cpuid(1), __cpuid_count(7, 0));
    #[target_feature(enable = "xsave")]
    unsafe fn xcr0() -> u64 {
        // SAFETY: the caller looked at OSXSAVE.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE is set.
    let xcr0 = if one.ecx & 1 << 27 != 0 { unsafe { xcr0() } } else { 0 };
    let word = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    vec![xcr0, word(one.ecx, one.edx), word(seven.ebx, seven.ecx), u64::from(seven.edx)]
}

#[cfg(target_arch = "aarch64")]
fn present() -> Vec<u64> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instructions_count() {
        assert!(missing(&present()).is_empty());
        let mut less = present();
        less[2] &= !(1 << 37);
        let had_avx2 = present()[2] >> 37 & 1 != 0;
        assert_eq!(lacking(&present(), &less) == ["AVX2"], had_avx2);
        // A hypervisor bit is no instruction.
        assert!(lacking(&[0, 1 << 63, 0, 0], &[0; 4]).is_empty());
        assert_eq!(lacking(&[0, 0, 1 << 48, 0], &[]), ["AVX512F"]);
    }
}
