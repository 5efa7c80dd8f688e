//! The AMX tile unit: eight registers of 16 rows by 64 bytes, and one instruction that multiplies two of them.
//!
//! The instructions have no stable intrinsics, so they are written in assembly here and nowhere else. Everything
//! outside works with slices, whose sizes are checked before a pointer is made of them.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::tile::{COLS, ROWS, Tile};

/// The configuration that `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config([u8; 64]);

/// Whether the processor has bf16 tiles, and the kernel lets this process use them.
fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && permitted())
}

/// CPUID leaf 7: bit 22 of EDX tells of bf16 products, bit 24 of tiles.
fn has_tiles() -> bool {
    __cpuid(0).eax >= 7 && {
        let edx = __cpuid_count(7, 0).edx;
        edx & (1 << 22) != 0 && edx & (1 << 24) != 0
    }
}

/// Linux keeps the tile registers from a process until it asks for them.
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and changes this process's permissions alone; an older kernel answers with
    // an error.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// The tile unit, set up on this thread and given back when dropped, so that the system need not save its 8 KiB with
/// every switch of threads.
pub struct Tiles(PhantomData<*mut ()>);

impl Tiles {
    /// `None` where there is none.
    pub fn new() -> Option<Self> {
        if !available() {
            return None;
        }
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = ROWS as u8;
        }
        // SAFETY: the processor has tiles and the kernel permits them; the configuration is 64 aligned bytes of
        // palette 1 with all tiles of 16 rows by 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) }
        Some(Self(PhantomData))
    }

    /// `C = A B` for 32 rows of `A`, or with `half` for 16, each `stride` values behind the last, and `2·steps` tiles `B`: for each step
    /// of 32 values, the tile of the columns 0..16 and that of 16..32. The rows of `C` are `row` values apart. Behind each step
    /// `between` is called with it: the vectors are idle while the unit multiplies, and the processor runs both at once. It must not use
    /// the unit itself.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn multiply(
        &self,
        half: bool,
        a: &[u16],
        stride: usize,
        b: &[Tile],
        c: &mut [f32],
        row: usize,
        mut between: impl FnMut(usize),
    ) {
        let (steps, _) = b.as_chunks::<2>();
        let last = if half { ROWS - 1 } else { 2 * ROWS - 1 };
        assert!(!steps.is_empty() && a.len() >= last * stride + steps.len() * COLS);
        assert!(row >= 32 && c.len() >= last * row + 32);
        // SAFETY: a `Tiles` exists, so the unit is set up on this thread. Nothing between here and the end uses its registers: the
        // compiler does not know of them, and `between` is asked not to.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nomem, nostack, preserves_flags)
            );
        }
        for (step, b) in steps.iter().enumerate() {
            let a = a.as_ptr().wrapping_add(step * COLS);
            // SAFETY: step s reads 64 bytes from `a + 32 s` in each row, of which the last ends at last·stride + 32·steps values,
            // inside as asserted, and two tiles.
            unsafe {
                if half {
                    asm!(
                        "tileloadd tmm6, [{b} + {line}]",
                        "tileloadd tmm4, [{a} + {stride}]",
                        "tileloadd tmm7, [{b} + {line} + 1024]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        a = in(reg) a,
                        b = in(reg) b.as_ptr(),
                        stride = in(reg) 2 * stride,
                        line = in(reg) 64usize,
                        options(nostack, readonly, preserves_flags),
                    );
                } else {
                    asm!(
                        "tileloadd tmm6, [{b} + {line}]",
                        "tileloadd tmm4, [{a0} + {stride}]",
                        "tileloadd tmm7, [{b} + {line} + 1024]",
                        "tileloadd tmm5, [{a1} + {stride}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        a0 = in(reg) a,
                        a1 = in(reg) a.wrapping_add(ROWS * stride),
                        b = in(reg) b.as_ptr(),
                        stride = in(reg) 2 * stride,
                        line = in(reg) 64usize,
                        options(nostack, readonly, preserves_flags),
                    );
                }
            }
            between(step);
        }
        // SAFETY: 128 bytes are written in each row of `c`, of which the last ends at last·row + 32, inside as asserted.
        unsafe {
            asm!(
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 64], tmm1",
                c = in(reg) c.as_mut_ptr(),
                row = in(reg) 4 * row,
                options(nostack, preserves_flags),
            );
            if !half {
                asm!(
                    "tilestored [{c} + {row}], tmm2",
                    "tilestored [{c} + {row} + 64], tmm3",
                    c = in(reg) c.as_mut_ptr().wrapping_add(ROWS * row),
                    row = in(reg) 4 * row,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    /// `rounds` of four products of what is in the registers, without a load: the most that the unit can do. Gives the
    /// floating-point operations.
    pub fn busy(&self, rounds: usize) -> u64 {
        let ones = Tile([0x3f80; ROWS * COLS]);
        // SAFETY: a tile is loaded from 1024 bytes; a `Tiles` exists, so the unit is set up on this thread.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tileloadd tmm4, [{from} + {line}]", "tileloadd tmm5, [{from} + {line}]",
                "tileloadd tmm6, [{from} + {line}]", "tileloadd tmm7, [{from} + {line}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}", "jnz 2b",
                rounds = inout(reg) rounds.max(1) => _,
                from = in(reg) ones.0.as_ptr(),
                line = in(reg) 64usize,
                options(nostack),
            );
        }
        // 16 by 16 results of 32 products and sums, four times a round.
        (rounds.max(1) * 4 * 2 * 16 * 16 * 32) as u64
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: returns the unit to its initial state; there is no tile value that anything still needs.
        unsafe { asm!("tilerelease", options(nomem, nostack)) }
    }
}
