//! Loops compiled a second time for processors with wide vectors, chosen when they run.

/// Whether the processor has vectors of eight f32 and fused multiplication and addition.
pub(crate) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Runs `work` with wide vectors where [`available`]. What `work` calls is compiled for them only if
/// it is inlined.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        if available() {
            // SAFETY: the processor has the two features, as was just asked of it.
            return unsafe { wide(work) };
        }
    }
    work()
}
