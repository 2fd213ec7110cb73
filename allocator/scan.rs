//! Scans over 64 summaries at once.
//! Called by: `chunk` and `segment`, which keep an upper bound per word and per chunk and ask which are high enough.

/// Bit `i` of the result: `values[i] >= least`.
#[inline]
pub(crate) fn at_least_u8(values: &[u8; 64], least: u8) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{
            _mm_cmpeq_epi8, _mm_loadu_si128, _mm_max_epu8, _mm_movemask_epi8, _mm_set1_epi8,
        };
        let mut mask = 0;
        // SAFETY: SSE2 is part of x86_64; the four loads of 16 bytes are the 64 bytes of `values`.
        unsafe {
            let least = _mm_set1_epi8(least.cast_signed());
            for i in 0..4 {
                let v = _mm_loadu_si128(values.as_ptr().add(i * 16).cast());
                let high = _mm_cmpeq_epi8(_mm_max_epu8(v, least), v);
                mask |= u64::from(_mm_movemask_epi8(high).cast_unsigned()) << (i * 16);
            }
        }
        mask
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        values.iter().rev().fold(0, |mask, &v| (mask << 1) | u64::from(v >= least))
    }
}

/// Bit `i` of the result: `values[i] >= least`, for values and bounds under 32,768.
#[inline]
pub(crate) fn at_least_u16(values: &[u16; 64], least: u16) -> u64 {
    debug_assert!(least <= 0x7fff && least > 0);
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{
            _mm_cmpgt_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16,
        };
        let mut mask = 0;
        // SAFETY: SSE2 is part of x86_64; the eight loads of 16 bytes are the 128 bytes of `values`.
        unsafe {
            let under = _mm_set1_epi16((least - 1).cast_signed());
            for i in 0..4 {
                let at = values.as_ptr().add(i * 16);
                let low = _mm_cmpgt_epi16(_mm_loadu_si128(at.cast()), under);
                let high = _mm_cmpgt_epi16(_mm_loadu_si128(at.add(8).cast()), under);
                let both = _mm_movemask_epi8(_mm_packs_epi16(low, high));
                mask |= u64::from(both.cast_unsigned()) << (i * 16);
            }
        }
        mask
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        values.iter().rev().fold(0, |mask, &v| (mask << 1) | u64::from(v >= least))
    }
}

/// Asks the CPU to have a value at hand soon.
#[inline]
pub(crate) fn prefetch<T>(value: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86_64; a prefetch is a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(value.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_agree_with_one_comparison_at_a_time() {
        let mut x = 1_u64;
        for _ in 0..2_000 {
            let bytes: [u8; 64] = core::array::from_fn(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x as u8
            });
            let words = bytes.map(|b| u16::from(b) * 16);
            for least in [1, 2, 63, 64, 128, 254, 255, x as u8 | 1] {
                let slow =
                    |f: &dyn Fn(usize) -> bool| (0..64).fold(0, |m, i| m | u64::from(f(i)) << i);
                assert_eq!(at_least_u8(&bytes, least), slow(&|i| bytes[i] >= least));
                let least = u16::from(least) * 16;
                assert_eq!(at_least_u16(&words, least), slow(&|i| words[i] >= least));
            }
        }
    }
}
