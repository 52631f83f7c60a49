//! What TLS needs of the processor, for the server of metrics and for the exporter of traces.

/// Without these instructions the cryptography would panic (graviola's `verify_cpu_features`).
#[must_use]
pub fn is_cpu_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        has!("aes") && has!("pclmulqdq") && has!("bmi1") && has!("adx") && has!("avx") && has!("avx2")
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        has!("neon") && has!("aes") && has!("pmull") && has!("sha2")
    }
}
